"""How much of a cluster's hardware a labelling job uses, for `ray job submit`.

    ray job submit --working-dir . -- python jobs/benchmark.py --config jobs/segment.yaml --set output=/mnt/shared/trial

Takes what `fcn-ray benchmark` takes: it labels the input into a new output, then lets the network alone predict
images of the same sizes on as many actors, and prints the rates of both and their ratio.
"""

import sys

from fcn_ray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "benchmark")
    main()
