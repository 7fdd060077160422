package node

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is what processes have taken of the machine.
type Usage struct {
	// Seconds of the processor, theirs and of the children that they waited for.
	Seconds float64
	// RSS and PeakRSS are bytes of resident memory, now and at most, summed over
	// the processes.
	RSS, PeakRSS int64
}

// SnapshotterUsage is what the snapshotter's processes take: the holder and the
// one that does the work.
func (n *Node) SnapshotterUsage() (Usage, error) {
	pids, err := processes(n.SnapshotterSocket(), n.SnapshotterRoot())
	if err != nil {
		return Usage{}, err
	}
	return UsageOf(pids...)
}

// SnapshotterMemory is the resident memory of the snapshotter's processes, in bytes.
func (n *Node) SnapshotterMemory() (int64, error) {
	u, err := n.SnapshotterUsage()
	return u.RSS, err
}

// ContainerdUsage is what containerd takes, and has taken through programs that it
// ran and that have ended. Shims are not among them.
func (n *Node) ContainerdUsage() (Usage, error) { return UsageOf(n.containerd.pid()) }

// UsageOf reads what the processes have taken, from the files that proc(5)
// describes.
func UsageOf(pids ...int) (Usage, error) {
	var sum Usage
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return Usage{}, err
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return Usage{}, err
		}
		u, err := parseUsage(string(stat), string(status))
		if err != nil {
			return Usage{}, fmt.Errorf("process %d: %w", pid, err)
		}
		sum.Seconds += u.Seconds
		sum.RSS += u.RSS
		sum.PeakRSS += u.PeakRSS
	}
	return sum, nil
}

// Children are the living children of a process.
func Children(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil {
			continue // gone
		}
		if f := statFields(string(stat)); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			found = append(found, child)
		}
	}
	return found, nil
}

// statFields are those of a stat file from the third on: before them is the name of
// the program, which may contain anything.
func statFields(stat string) []string {
	return strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
}

func parseUsage(stat, status string) (Usage, error) {
	const ticks = 100 // a second, on every Linux that Go runs on
	var u Usage
	f := statFields(stat)
	if len(f) < 15 {
		return u, fmt.Errorf("stat has %d fields", len(f))
	}
	for _, text := range f[11:15] { // utime, stime, and those of ended children
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return u, err
		}
		u.Seconds += float64(n) / ticks
	}
	for line := range strings.Lines(status) {
		f := strings.Fields(line)
		if len(f) < 2 || (f[0] != "VmRSS:" && f[0] != "VmHWM:") {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return u, err
		}
		if f[0] == "VmRSS:" {
			u.RSS = kib << 10
		} else {
			u.PeakRSS = kib << 10
		}
	}
	return u, nil
}
