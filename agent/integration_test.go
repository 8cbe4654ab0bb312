package agent

func daemonMain() int { return 0 }
