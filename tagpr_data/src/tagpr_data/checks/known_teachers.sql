-- Is every row's teacher in the manifest, with this revision?
SELECT id AS row, format('teacher {} at {} is not in the manifest', teacher, teacher_revision) AS problem
FROM attempts
WHERE (teacher, teacher_revision) NOT IN (SELECT (name, revision) FROM manifest_teachers)
