package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/tools"
)

// describeMachine says what the figures were measured on.
func describeMachine(ctx context.Context, b *bench) (Machine, error) {
	m := Machine{CPU: "unknown", Cores: runtime.NumCPU(), Go: runtime.Version()}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(cpu)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, err
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(u.Release[:])
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(b.dir))
	if err != nil {
		return m, err
	}
	longest := -1
	for _, mount := range mounts {
		if len(mount.Mountpoint) > longest {
			longest, m.Disk = len(mount.Mountpoint), mount.FSType
		}
	}
	m.Containerd = firstLine(ctx, b.tools[tools.Containerd], "--version")
	m.Runc = firstLine(ctx, b.tools[tools.Runc], "--version")
	m.Commit = firstLine(ctx, "git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude", "*")
	return m, nil
}

// firstLine is the first line that a program prints; of one that fails, nothing.
func firstLine(ctx context.Context, argv ...string) string {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// processors is what has become of the processors' time since the machine started, in
// seconds of all of them together.
type processors struct {
	worked float64
	// stolen went to other machines on the same hardware while this one wanted it.
	stolen float64
}

// processorTime reads it from /proc/stat, as proc(5) describes it.
func processorTime() (processors, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return processors{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return parseProcessors(line)
}

func parseProcessors(line string) (processors, error) {
	const ticks = 100
	var p processors
	f := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal guest
	if len(f) < 9 || f[0] != "cpu" {
		return p, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, sum := range map[int]*float64{1: &p.worked, 2: &p.worked, 3: &p.worked, 6: &p.worked, 7: &p.worked, 8: &p.stolen} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return p, err
		}
		*sum += float64(n) / ticks
	}
	return p, nil
}
