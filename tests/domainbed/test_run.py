def test_x(table): print(len(table.plan.trainings), table.sweep.trained); [print(c) for c in table.sweep.cells[:3]]
def test_y(left_one_out): print(len(left_one_out.plan.trainings))
def test_z(reference): print(len(reference.plan.trainings)); [print(c) for c in reference.sweep.cells]
