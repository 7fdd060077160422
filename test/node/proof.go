package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// WaitPage asks for url every 2 ms until the answer contains body: the moment at
// which a server is ready, as its first client sees it.
func WaitPage(ctx context.Context, url, body string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: time.Second}).DialContext,
	}}
	for {
		last := page(ctx, client, url, body)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not served: %w (last: %w)", url, ctx.Err(), last)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func page(ctx context.Context, client *http.Client, url, body string) (err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	a, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Body.Close()) }()
	got, err := io.ReadAll(io.LimitReader(a.Body, 1<<20))
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusOK || !strings.Contains(string(got), body) {
		return fmt.Errorf("%s: %.100q", a.Status, got)
	}
	return nil
}

// RootMount is what a running container's root directory really is.
type RootMount struct {
	// Type is the file system type of "/" in the container.
	Type string
	// Lowers are the host's directories under an overlay, topmost first, and
	// LowerTypes the file system types that these are on.
	Lowers, LowerTypes []string
}

// String describes the mount in a few words: "overlay on erofs".
func (m RootMount) String() string {
	if len(m.LowerTypes) == 0 {
		return m.Type
	}
	var kinds []string
	for _, t := range m.LowerTypes {
		if len(kinds) == 0 || kinds[len(kinds)-1] != t {
			kinds = append(kinds, t)
		}
	}
	return m.Type + " on " + strings.Join(kinds, "+")
}

// RootMount reads the kernel's mount tables: the container's for its root, this
// process's for what lies under an overlay.
func (c *Container) RootMount(ctx context.Context) (RootMount, error) {
	pid, err := c.PID(ctx)
	if err != nil {
		return RootMount{}, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return RootMount{}, err
	}
	defer func() { _ = f.Close() }()
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter("/"))
	if err != nil {
		return RootMount{}, err
	}
	if len(mounts) == 0 {
		return RootMount{}, fmt.Errorf("process %d has no root mount", pid)
	}
	m := RootMount{Type: mounts[0].FSType}
	for option := range strings.SplitSeq(mounts[0].VFSOptions, ",") {
		if value, ok := strings.CutPrefix(option, "lowerdir="); ok {
			m.Lowers = strings.Split(value, ":")
		}
		if value, ok := strings.CutPrefix(option, "lowerdir+="); ok {
			m.Lowers = append(m.Lowers, value)
		}
	}
	host, err := mountinfo.GetMounts(nil)
	if err != nil {
		return RootMount{}, err
	}
	for _, lower := range m.Lowers {
		m.LowerTypes = append(m.LowerTypes, typeAt(host, c.n.lowerPath(lower)))
	}
	return m, nil
}

// lowerPath makes a lower directory absolute: containerd shortens long lists by
// mounting from within its snapshots directory.
func (n *Node) lowerPath(lower string) string {
	if filepath.IsAbs(lower) {
		return lower
	}
	for _, dir := range append([]string{
		filepath.Join(n.o.Dir, "containerd", "io.containerd.snapshotter.v1.overlayfs", "snapshots"),
		filepath.Join(n.SnapshotterRoot(), "snapshots"),
	}, n.o.SnapshotDirs...) {
		if p := filepath.Join(dir, lower); exists(p) {
			return p
		}
	}
	return lower
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// typeAt returns the type of the file system that path is on.
func typeAt(mounts []*mountinfo.Info, path string) string {
	longest, kind := -1, "unknown"
	for _, m := range mounts {
		below := path == m.Mountpoint || strings.HasPrefix(path, strings.TrimSuffix(m.Mountpoint, "/")+"/")
		if below && len(m.Mountpoint) >= longest { // of equal ones the last mounted covers
			longest, kind = len(m.Mountpoint), m.FSType
		}
	}
	return kind
}

// FreePort returns a port of 127.0.0.1 that was free a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
