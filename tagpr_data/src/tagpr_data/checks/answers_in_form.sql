-- Is the answer of every trace among the labels of its task, where the task has labels?
SELECT id AS row, format('answer {} is not a label of {}', left(answer, 60), task) AS problem
FROM traces JOIN manifest_tasks ON task = name
WHERE labels IS NOT NULL AND NOT list_contains(labels, answer)
