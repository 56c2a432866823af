-- Is the margin of every pair how much better its chosen completion scores, and do the two differ?
SELECT id AS row, format('margin {}, scores {} and {}', margin, chosen_score, rejected_score) AS problem
FROM pairs
WHERE NOT chosen_score BETWEEN 0 AND 1 OR NOT rejected_score BETWEEN 0 AND 1 OR chosen_score < rejected_score
   OR abs(margin - (chosen_score - rejected_score)) > 1e-9 OR isnan(margin) OR chosen = rejected
