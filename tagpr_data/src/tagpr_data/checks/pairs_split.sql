-- Are the users of unseen pairs in no other split, the examples of train in no other, and rows in the file of their split?
SELECT user_id AS row, format('is in {}', string_agg(DISTINCT split, ' and ' ORDER BY split)) AS problem
FROM pairs GROUP BY user_id HAVING count(DISTINCT split) > 1 AND bool_or(split = 'unseen')
UNION ALL
SELECT example_id, format('is in {}', string_agg(DISTINCT split, ' and ' ORDER BY split))
FROM pairs GROUP BY example_id HAVING count(DISTINCT split) > 1
UNION ALL
SELECT id, format('says split {}, is in {}', stated_split, split) FROM pairs WHERE stated_split <> split
