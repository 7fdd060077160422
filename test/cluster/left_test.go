package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// spaces are the namespaces of a running cluster, as /proc names them: the control
// plane's network, and all of each node.
func spaces(t *testing.T, c *Cluster) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	add := func(path string) {
		link, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		all[link] = true
	}
	add(c.space.path())
	for _, n := range c.nodes {
		if n.pid() == 0 {
			continue
		}
		for _, kind := range []string{"mnt", "pid", "net", "uts", "ipc", "cgroup"} {
			add(fmt.Sprintf("/proc/%d/ns/%s", n.pid(), kind))
		}
	}
	return all
}

// left returns what there is of a cluster that was in dir and had these namespaces.
func left(t *testing.T, dir string, spaces map[string]bool) (all []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && spaces[to] {
			comm, _ := os.ReadFile(filepath.Join(filepath.Dir(l), "../comm"))
			all = append(all, fmt.Sprintf("process %s %s", l, comm))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			all = append(all, "mount "+line)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.Contains(string(b), dir) {
			all = append(all, "loop device "+l)
		}
	}
	for _, pattern := range []string{groupRoot + "/*/" + groupName(filepath.Base(dir)), groupRoot + "/" + groupName(filepath.Base(dir))} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, groups...)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		all = append(all, "directory "+dir)
	}
	return all
}

// nothingLeft waits for a moment until nothing is left: the kernel takes namespaces
// and loop devices apart on its own time.
func nothingLeft(t *testing.T, dir string, spaces map[string]bool) {
	t.Helper()
	var all []string
	for range 200 {
		if all = left(t, dir, spaces); len(all) == 0 {
			return
		}
		time.Sleep(poll)
	}
	t.Errorf("left is:\n%s", strings.Join(all, "\n"))
}
