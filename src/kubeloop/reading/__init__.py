"""Turn a user's file into a table.

`kubeloop init` opens the file (`files`), decides once how its texts are read (`infer`, with `dates` and `numbers`) and
writes that into loop.yaml (`spec`). After that, `sources` reads every file of the table in that way (`cells`, `rows`),
and a row that does not fit goes to the quarantine.
"""
