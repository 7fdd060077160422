package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchy is a tree of cgroups: one of version 1, of which a host may have a dozen,
// or the one of version 2. A process is in one group of each.
type hierarchy struct {
	dir     string // where its root is mounted
	unified bool   // version 2
}

// hierarchies reads those that are mounted on this host.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	all, err := parseHierarchies(f)
	err = errors.Join(err, f.Close())
	if err == nil && len(all) == 0 {
		err = errors.New("no cgroups are mounted: nothing can outlive the pod that starts it")
	}
	return all, err
}

// parseHierarchies finds the hierarchies in a text like /proc/self/mountinfo. Where
// one is mounted at several places, the one in /sys/fs/cgroup is taken, or the first.
func parseHierarchies(r io.Reader) ([]hierarchy, error) {
	mounts, err := mountinfo.GetMountsFromReader(r, func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != "cgroup" && i.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return rank(a) - rank(b) })
	var all []hierarchy
	seen := map[[2]int]bool{}
	for _, m := range mounts {
		if device := [2]int{m.Major, m.Minor}; !seen[device] {
			seen[device] = true
			all = append(all, hierarchy{dir: m.Mountpoint, unified: m.FSType == "cgroup2"})
		}
	}
	return all, nil
}

func rank(m *mountinfo.Info) int {
	if m.Mountpoint == "/sys/fs/cgroup" || strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup/") {
		return 0
	}
	return 1
}

// group is a cgroup in every hierarchy.
type group []hierarchy

// groupOf is the group of a service: at the top, where nobody who ends a pod looks.
func groupOf(name string) (group, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].dir = filepath.Join(all[i].dir, name)
	}
	return all, nil
}

// make makes the group.
func (g group) make() error {
	for _, h := range g {
		if err := os.Mkdir(h.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making a cgroup: %w", err)
		}
		if err := inherit(h.dir); err != nil {
			return fmt.Errorf("making a cgroup: %w", err)
		}
	}
	return nil
}

// exists says whether the group is there, in all hierarchies.
func (g group) exists() bool {
	for _, h := range g {
		if _, err := os.Stat(h.dir); err != nil {
			return false
		}
	}
	return true
}

// inherit gives a new group of cpuset, version 1, the processors and the memory of the
// one above: without any it takes no process.
func inherit(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(have))) > 0 {
			continue
		}
		above, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(above))) == 0 {
			continue // version 2, where none means all
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), above, 0); err != nil {
			return err
		}
	}
	return nil
}

// enter moves the calling thread into the group, as far as it is of version 1. What it
// starts is there from its first moment on.
func (g group) enter() error {
	for _, h := range g {
		if h.unified {
			continue
		}
		if err := os.WriteFile(filepath.Join(h.dir, "tasks"), strconv.AppendInt(nil, int64(unix.Gettid()), 10), 0); err != nil {
			return fmt.Errorf("entering a cgroup: %w", err)
		}
	}
	return nil
}

// unified is the group's directory of version 2, or empty.
func (g group) unified() string {
	for _, h := range g {
		if h.unified {
			return h.dir
		}
	}
	return ""
}

// add moves a whole process into the group.
func (g group) add(pid int) error {
	for _, h := range g {
		if err := os.WriteFile(filepath.Join(h.dir, "cgroup.procs"), strconv.AppendInt(nil, int64(pid), 10), 0); err != nil {
			return fmt.Errorf("moving process %d into a cgroup: %w", pid, err)
		}
	}
	return nil
}

// processes are those that are in the group, in any hierarchy.
func (g group) processes() (map[process]bool, error) {
	all := map[process]bool{}
	for _, h := range g {
		b, err := os.ReadFile(filepath.Join(h.dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("%s/cgroup.procs: %w", h.dir, err)
			}
			if p, err := findProcess(pid); err == nil { // else it has ended
				all[p] = true
			}
		}
	}
	return all, nil
}

// kill ends everything in the group except for the caller.
func (g group) kill(ctx context.Context) error {
	for {
		all, err := g.processes()
		if err != nil {
			return err
		}
		left := 0
		for p := range all {
			if p.PID == os.Getpid() || !p.alive() {
				continue
			}
			left++
			if err := p.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d: %w", p.PID, err)
			}
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("%d processes do not end: %w", left, err)
		}
	}
}

// remove removes the group, whose processes have ended. If the caller is in it, it
// leaves it before, for the group of process 1.
func (g group) remove(ctx context.Context) error {
	all, err := g.processes()
	if err != nil {
		return err
	}
	for p := range all {
		if p.PID != os.Getpid() {
			continue
		}
		of, err := groupOfProcess(1)
		if err == nil {
			err = of.add(p.PID)
		}
		if err != nil {
			return err
		}
	}
	for _, h := range g {
		for {
			err := unix.Rmdir(h.dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) { // the dead leave a moment later
				return &fs.PathError{Op: "rmdir", Path: h.dir, Err: err}
			}
			if serr := sleep(ctx, 5*time.Millisecond); serr != nil {
				return errors.Join(&fs.PathError{Op: "rmdir", Path: h.dir, Err: err}, serr)
			}
		}
	}
	return nil
}

// groupOfProcess is the group that a process is in.
func groupOfProcess(pid int) (group, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	g, err := parseGroup(string(b), f)
	return g, errors.Join(err, f.Close())
}

// parseGroup brings together a text like /proc/PID/cgroup, which names groups by
// controllers, and one like /proc/self/mountinfo, which says where those are mounted.
func parseGroup(cgroup string, mounts io.Reader) (group, error) {
	infos, err := mountinfo.GetMountsFromReader(mounts, nil)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(infos, func(a, b *mountinfo.Info) int { return rank(a) - rank(b) })
	var g group
	for line := range strings.Lines(cgroup) {
		// The number of the hierarchy, its controllers, and the path (cgroups(7)).
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			return nil, fmt.Errorf("cgroup %q: want three fields", line)
		}
		for _, m := range infos {
			if !has(m, f[1]) {
				continue
			}
			rel, ok := below(m.Root, f[2])
			if !ok {
				return nil, fmt.Errorf("cgroup %s of %q is not below %s, which is mounted at %s", f[2], f[1], m.Root, m.Mountpoint)
			}
			g = append(g, hierarchy{dir: filepath.Join(m.Mountpoint, rel), unified: f[1] == ""})
			break
		}
	}
	return g, nil
}

// has says whether a mount is that of a hierarchy with the given controllers; none
// stands for version 2.
func has(m *mountinfo.Info, controllers string) bool {
	if controllers == "" {
		return m.FSType == "cgroup2"
	}
	return m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), strings.Split(controllers, ",")[0])
}

// below is path relative to root.
func below(root, path string) (string, bool) {
	if root == "/" {
		return path, true
	}
	rest, ok := strings.CutPrefix(path, root)
	return rest, ok && (rest == "" || rest[0] == '/')
}
