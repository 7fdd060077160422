package node

import (
	"os"
	"slices"
	"testing"
)

// TestUsage proves that figures are found behind a program's name, whatever that is.
func TestUsage(t *testing.T) {
	u, err := parseUsage(
		"7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 25 75 20 0 9 0 100 1 2\n",
		"Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
	if err != nil || u != (Usage{Seconds: 3, RSS: 1 << 20, PeakRSS: 2 << 20}) {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := parseUsage("7 (a) S 1", ""); err == nil {
		t.Error("a short stat file is taken")
	}
	if u, err := UsageOf(os.Getpid()); err != nil || u.RSS == 0 || u.PeakRSS < u.RSS {
		t.Errorf("of this process: %+v, %v", u, err)
	}
	if pids, err := Children(os.Getppid()); err != nil || !slices.Contains(pids, os.Getpid()) {
		t.Errorf("children of the parent: %v, %v", pids, err)
	}
}
