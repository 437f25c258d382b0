"""How a user's file becomes a table.

`kubeloop init` opens the file (`files`), decides once how its texts are read (`infer`, with `dates` and `numbers`) and
writes that into loop.yaml (`spec`). From then on `sources` reads every file of the table in that way (`cells`, `rows`),
and a row that does not fit goes into the quarantine.
"""
