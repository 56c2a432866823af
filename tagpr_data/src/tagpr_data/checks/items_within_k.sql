-- Does every prompt show at most k items, each once?
SELECT id AS row, format('{} items ({} distinct), k is {}', len(item_ids), len(list_distinct(item_ids)), k) AS problem
FROM attempts
WHERE len(item_ids) > k OR len(item_ids) <> len(list_distinct(item_ids))
