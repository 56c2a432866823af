-- Is there one row for each prompt, teacher, sampling seed and attempt?
SELECT min(id) AS row, format('attempt {} on prompt {} occurs {} times', attempt, prompt_hash, count(*)) AS problem
FROM attempts
GROUP BY prompt_hash, teacher, teacher_revision, attempt
HAVING count(*) > 1 AND min(id) <> max(id)
