package matrix

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// state is what a node looks like.
type state struct {
	config []byte
	info   fs.FileInfo
	things map[string]bool
}

// state looks at everything on a node but what containerd and its containers change
// all the time.
func (h *host) state() state {
	h.t.Helper()
	s := state{things: map[string]bool{}}
	var err error
	s.config, err = os.ReadFile(h.Path(config))
	h.must(err)
	s.info, err = os.Stat(h.Path(config))
	h.must(err)
	for _, m := range h.mounts(1) {
		if !strings.HasPrefix(m.Mountpoint, "/run/containerd/") && !strings.HasPrefix(m.Mountpoint, "/run/netns/") {
			s.things["mount "+m.FSType+" "+m.Mountpoint] = true
		}
	}
	lines, err := filepath.Glob(h.Path("/proc/[0-9]*/cmdline"))
	h.must(err)
	for _, l := range lines {
		text, _ := os.ReadFile(l) // a process may have ended
		if line := strings.ReplaceAll(string(text), "\x00", " "); strings.Contains(line, "apparate") {
			s.things["process "+line] = true
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*apparate*", "/sys/fs/cgroup/*/*apparate*", "/sys/fs/cgroup/*/*/*apparate*"} {
		groups, err := filepath.Glob(h.Path(pattern))
		h.must(err)
		for _, g := range groups {
			s.things["cgroup "+strings.TrimPrefix(g, h.Path("/"))] = true
		}
	}
	for _, dir := range []string{"/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/local", "/var"} {
		h.walk(dir, s.things)
	}
	return s
}

// walk notes the files below dir.
func (h *host) walk(dir string, things map[string]bool) {
	h.t.Helper()
	skip := []string{"/opt/cni", "/opt/nft", "/run/containerd/*", "/run/netns/*", "/run/proc", "/run/service/*", "/var/lib/cni", "/var/lib/containerd/*/*", "/var/log/pods"}
	base := h.Path("/")
	err := filepath.WalkDir(h.Path(dir), func(path string, _ fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // just now
		}
		if err != nil {
			return err
		}
		path = "/" + strings.TrimPrefix(strings.TrimPrefix(path, base), "/")
		for _, s := range skip {
			if ok, err := filepath.Match(s, path); err != nil || ok {
				return fs.SkipDir
			}
		}
		things["file "+path] = true
		return nil
	})
	h.must(err)
}

// same compares the node with what it was.
func (h *host) same(was state) {
	h.t.Helper()
	is := h.state()
	if string(is.config) != string(was.config) || is.info.Mode() != was.info.Mode() || !is.info.ModTime().Equal(was.info.ModTime()) {
		h.t.Errorf("%s is not what it was: %v %v, now %v %v:\n%s", config, was.info.Mode(), was.info.ModTime(), is.info.Mode(), is.info.ModTime(), is.config)
	}
	for _, thing := range slices.Sorted(maps.Keys(is.things)) {
		if !was.things[thing] {
			h.t.Errorf("left: %s", thing)
		}
	}
	for _, thing := range slices.Sorted(maps.Keys(was.things)) {
		if !is.things[thing] && thing != "file "+hostDir { // it was empty
			h.t.Errorf("lost: %s", thing)
		}
	}
}
