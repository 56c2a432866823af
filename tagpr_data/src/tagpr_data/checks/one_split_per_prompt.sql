-- Is every prompt in one split only?
SELECT min(id) AS row, format('prompt {} is in {} and {}', prompt_hash, min(split), max(split)) AS problem
FROM attempts
GROUP BY prompt_hash
HAVING min(split) <> max(split) AND min(example_id) <> max(example_id)
