"""Why a run failed: rules about known failures, and the search for them in its logs."""
