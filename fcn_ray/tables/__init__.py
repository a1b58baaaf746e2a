"""ROWS: what there is (sources), what to do (plan), put it there once (commit), prove it (audit).

sources, columns    files and tables of the input; which columns of a table are read
chunks, planfile    cutting inputs into chunks; a plan as a file
plan                the plan log: every input version in one chunk, for ever
cursor, reading     the rows of a chunk, whatever state its inputs are in
runs                the run folder and whose it is
maskfile, commit    a chunk's results as a file; putting it, once
manifest            the end of a run: digests of everything
audit*              the proof, which shares no code with the modules above (audit_source reads the input by them)
superseded          which rows newer plans have again
current             read_masks: the rows that count, as a dataset
statuses, retry     how rows ended; planning those that failed once more
lookup              finding the mask of a label again
schema              every column's name, and the status codes
"""
