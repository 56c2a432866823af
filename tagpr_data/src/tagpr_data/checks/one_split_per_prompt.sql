-- Is every prompt in one split only?
SELECT min(id) AS row,
       format('prompt {} is in {}', prompt_hash, string_agg(DISTINCT split, ' and ' ORDER BY split)) AS problem
FROM attempts
GROUP BY prompt_hash
HAVING count(DISTINCT split) > 1 AND count(DISTINCT example_id) > 1
