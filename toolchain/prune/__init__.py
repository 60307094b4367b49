"""From a dense checkpoint and calibration clips to a slim one."""
