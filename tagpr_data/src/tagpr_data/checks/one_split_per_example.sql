-- Is every example in one split only?
SELECT example_id AS row, format('is in {} and {}', min(split), max(split)) AS problem
FROM attempts
GROUP BY example_id
HAVING min(split) <> max(split)
