-- Is every example in one split only?
SELECT example_id AS row, format('is in {}', string_agg(DISTINCT split, ' and ' ORDER BY split)) AS problem
FROM attempts
GROUP BY example_id
HAVING count(DISTINCT split) > 1
