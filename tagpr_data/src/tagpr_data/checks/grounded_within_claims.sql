-- Has no trace more grounded claims than claims?
SELECT id AS row, format('{} grounded of {} claims', grounded_claims, claims) AS problem
FROM traces
WHERE grounded_claims > claims OR grounded_claims < 0
