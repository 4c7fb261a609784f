"""The flat room: everything that a checkpoint needs to run. torch and transformers only; files import their siblings
by name."""
