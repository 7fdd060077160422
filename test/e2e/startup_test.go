package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/api/profile"
	cprofile "github.com/apparate/apparate/converter/profile"
	cregistry "github.com/apparate/apparate/converter/registry"
	"github.com/apparate/apparate/snapshotter/startup"
	"github.com/apparate/apparate/test/link"
	"github.com/apparate/apparate/test/node"
)

// another is a fresh node that reaches h's registry as addr.
func (h *host) another(t *testing.T, addr string, args ...string) *host {
	t.Helper()
	dir := t.TempDir()
	n, err := node.Start(t.Context(), node.Options{
		Dir: dir, Tools: commands, Snapshotter: commands[apparate], SnapshotterArgs: args, Registries: []string{addr},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return &host{n, h.reg}
}

// ask reads JSON from the daemon's status socket.
func (h *host) ask(path string, to any) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(filepath.Dir(h.SnapshotterSocket()), "status.sock"))
	}}}
	resp, err := client.Get("http://status" + path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}

// sample waits for the first sample of the node.
func (h *host) sample(t *testing.T) profile.Sample {
	t.Helper()
	var list []profile.Sample
	eventually(t, "the start is recorded", func() bool { return h.ask("/samples", &list) == nil && len(list) == 1 })
	if err := list[0].Check(); err != nil {
		t.Error(err)
	}
	return list[0]
}

// timeline is what the node says of its only start.
func (h *host) timeline(t *testing.T) startup.Timeline {
	t.Helper()
	var list []startup.Timeline
	if err := h.ask("/starts", &list); err != nil || len(list) != 1 {
		t.Fatalf("starts: %+v, %v", list, err)
	}
	return list[0]
}

// readHalf starts a container of ref that reads the first n files of /data.
func (h *host) readHalf(t *testing.T, ref string, files map[string][]byte, n int) {
	t.Helper()
	var want, script strings.Builder
	script.WriteString("cd /data && sha256sum")
	for i := range n {
		file := fmt.Sprintf("f%03d", i)
		fmt.Fprintf(&want, "%x  %s\n", sha256.Sum256(files[file]), file)
		script.WriteString(" " + file)
	}
	h.pull(t, ref)
	if got := h.sh(t, ref, "reads", script.String()); got != want.String() {
		t.Errorf("wrong content: %s", got)
	}
}

// publish makes the profile of samples and gives it to the image ref, as if it were
// its own.
func publish(t *testing.T, from, ref string, samples ...profile.Sample) string {
	t.Helper()
	client, err := cregistry.New(cregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	load := func(ref string) *cprofile.Image {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		d, err := remote.Head(tag)
		if err != nil {
			t.Fatal(err)
		}
		im, err := cprofile.Load(t.Context(), client, tag.Digest(d.Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	im := load(from)
	wanted := cprofile.SampleChunks(samples)
	if err := im.Locate(t.Context(), func(sum [32]byte) bool { return wanted[sum] }, false); err != nil {
		t.Fatal(err)
	}
	plan, _ := cprofile.Merge(samples, im, cprofile.MergeOptions{})
	pack, err := cprofile.Build(t.Context(), im, plan, cprofile.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cprofile.Push(t.Context(), load(ref), &pack.Table, pack.Upload(), profile.Summary{Created: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := pack.Close(); err != nil {
		t.Error(err)
	}
	return pack.Table.Pack
}

const quietly = "--background-fetch-delay=-1s"

// TestStartupProfile records a start on one node, and starts the image on a fresh one
// that finds its profile: nothing is asked for one by one any more.
func TestStartupProfile(t *testing.T) {
	h := start(t, quietly)
	img, files := shell(t, 40, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	h.readHalf(t, ref, files, 20)
	s := h.sample(t)
	before := h.timeline(t)
	if s.Profile != "" || before.DemandRequests < 10 || before.PackBytes != 0 || s.Outcome.Requests != before.DemandRequests {
		t.Fatalf("without a profile: %+v, %+v", s.Outcome, before)
	}
	pack := publish(t, ref, ref, s)

	other := h.another(t, h.reg.Host(), quietly)
	other.readHalf(t, ref, files, 20)
	after, got := other.timeline(t), other.sample(t)
	if after.DemandRequests > 2 || after.ProfileHits != after.ChunksRead || after.Ended != "" || after.PackBytes == 0 {
		t.Errorf("with a profile: %+v", after)
	}
	if got.Profile != pack || got.Manifest != s.Manifest {
		t.Errorf("the sample names profile %q, want %q", got.Profile, pack)
	}
	for _, event := range []string{"manifest", "looked", "layers", "merged", "built", "mounted", "created", "packFirstByte", "packDone"} {
		if _, ok := after.Events[event]; !ok {
			t.Errorf("no %q in %v", event, after.Events)
		}
	}
	// It outlives the daemon.
	pid, err := other.daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next daemon serves", func() bool {
		var list []profile.Sample
		now, err := other.daemon()
		return err == nil && now != pid && other.ask("/samples", &list) == nil && len(list) == 1
	})

	for mode, want := range map[string]int{"record": 1, "off": 0} {
		off := h.another(t, h.reg.Host(), quietly, "--profiles", mode)
		h.reg.Forget()
		off.readHalf(t, ref, files, 20)
		var list []startup.Timeline
		if err := off.ask("/starts", &list); err != nil || len(list) != want {
			t.Errorf("%s: %+v, %v", mode, list, err)
		}
		for _, q := range h.reg.Requests() {
			if strings.Contains(q.Path, "referrers") {
				t.Errorf("%s: asked for %s", mode, q.Path)
			}
		}
	}
}

// TestStartupWrongProfile starts an image whose profile is another image's, and one
// whose pack is gone: they start as they would without.
func TestStartupWrongProfile(t *testing.T) {
	h := start(t, quietly)
	img, files := shell(t, 40, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	odd := map[string][]byte{}
	data := []file{{name: "data/", mode: 0o755}}
	for n, b := range files {
		odd[n] = append([]byte("odd"), b...)
		data = append(data, file{name: "data/" + n, mode: 0o644, body: odd[n]})
	}
	wrong := h.accelerate(t, "odd:v1", image(t, shellLayer(t), layer(t, data...)))
	h.readHalf(t, wrong, odd, 20)
	s := h.sample(t)
	pack := publish(t, wrong, ref, s)

	other := h.another(t, h.reg.Host(), quietly)
	other.readHalf(t, ref, files, 20)
	tl, got := other.timeline(t), other.sample(t)
	// All of the files was fetched on demand, in however many requests.
	if tl.Profile != pack || tl.DemandBytes < 20*300_000 || tl.PackBytes > 20*300_000 {
		t.Errorf("with a wrong profile: %+v", tl)
	}
	if len(got.Layers) == 0 {
		t.Errorf("no sample: %+v", got)
	}
}

// TestStartupKilled kills the daemon in the middle of a stream: the container does not
// notice.
func TestStartupKilled(t *testing.T) {
	h := start(t, quietly)
	img, files := shell(t, 40, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	h.readHalf(t, ref, files, 40)
	publish(t, ref, ref, h.sample(t))

	l, err := link.New(h.reg.Host(), 40e6, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	other := h.another(t, l.Addr(), quietly)
	killed := make(chan error, 1)
	go func() {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			var list []startup.Timeline
			if other.ask("/starts", &list) != nil || len(list) == 0 || list[0].PackBytes < 3<<20 || list[0].Events["created"] == 0 {
				continue
			}
			pid, err := other.daemon()
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			killed <- err
			return
		}
		killed <- os.ErrDeadlineExceeded
	}()
	other.readHalf(t, strings.Replace(ref, h.reg.Host(), l.Addr(), 1), files, 40)
	if err := <-killed; err != nil {
		t.Errorf("the daemon was not killed: %v", err)
	}
}
