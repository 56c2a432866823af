-- Does every rejected candidate carry a reason that is known?
SELECT id AS row, format('reason {} is not known', reason) AS problem
FROM rejected
WHERE reason NOT IN (SELECT reason FROM known_reasons)
