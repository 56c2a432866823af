-- Does every trace score at least what the manifest demands for its task or its kind of task?
SELECT id AS row, format('score {} is below {}', score, coalesce(task_least, least)) AS problem
FROM traces
JOIN manifest_tasks ON task = name
LEFT JOIN manifest_thresholds USING (kind)
LEFT JOIN manifest_task_thresholds USING (task)
WHERE score < coalesce(task_least, least) AND score >= 0
