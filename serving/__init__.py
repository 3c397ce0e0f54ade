"""The HTTP application. In: bundles, a catalogue and user states from a models directory. Out: ranked answers, and a
decision log from which the next policy learns. `serve run recfuse.serving.app:app` starts it."""
