-- Is the gold answer of a generation task (from 4 words on) absent from the prompt?
SELECT id AS row, format('the prompt holds the gold answer {}', left(gold, 60)) AS problem
FROM traces JOIN manifest_tasks ON task = name
WHERE kind = 'generation' AND regexp_matches(gold, '(\S+\s+){3}\S')
  AND len(list_filter(messages, lambda message: contains(message.content, trim(gold)))) > 0
