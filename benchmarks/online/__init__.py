"""Online serving measured: Feast's own server, the limits of the machine, and Tallystick."""
