-- Does every trace score at least what the manifest demands for its kind of task?
SELECT id AS row, format('score {} is below {}', score, least) AS problem
FROM traces JOIN manifest_tasks ON task = name JOIN manifest_thresholds USING (kind)
WHERE score < least AND score >= 0
