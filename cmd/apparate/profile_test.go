package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/test/images"
	testregistry "github.com/apparate/apparate/test/registry"
)

// profileLab is an accelerated image, and a daemon that recorded starts of it.
type profileLab struct {
	t              *testing.T
	plain, image   string
	digest, socket string
	samples        []api.Sample
}

// the files of the image; a start reads the first.
var profileFiles = map[string]string{"bin/program": strings.Repeat("program ", 5000), "share/book": strings.Repeat("unread ", 9000)}

func newProfileLab(t *testing.T) *profileLab {
	t.Helper()
	host := testregistry.New(t).Host()
	l := &profileLab{t: t, plain: host + "/app:v1", image: host + "/app:v1-apparate", socket: filepath.Join(t.TempDir(), "status.sock")}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, body := range profileFiles {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o755, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := images.Compose(images.Blob{Bytes: b.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(l.plain)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/bin/program"}}); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	r, err := converter.New(converter.Options{TempDir: t.TempDir()}).Convert(t.Context(), converter.Request{Source: l.plain})
	if err != nil {
		t.Fatal(err)
	}
	l.digest = r.TargetDigest
	s := api.Sample{Image: host + "/app", Manifest: r.TargetDigest, Platform: "linux/amd64", Workload: "shop/Deployment/front\x1b[2J", Started: time.Now().UTC(),
		DurationMillis: 5000, ReadyMillis: 700, Layers: []api.SampleLayer{{Digest: "sha256:x"}}, Outcome: api.Outcome{Requests: 9, FetchedBytes: 1e6, WaitedReads: 3, WaitMillis: 90}}
	s.Layers[0].Add(sha256.Sum256([]byte(profileFiles["bin/program"])), 12)
	other := s
	other.Image = host + "/other"
	l.samples = []api.Sample{other, s}
	return l
}

// serve is the daemon's status socket.
func (l *profileLab) serve() {
	l.t.Helper()
	ln, err := net.Listen("unix", l.socket)
	if err != nil {
		l.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /samples", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(l.samples) // the client may have left
	})
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // it ends when it is closed
	}()
	l.t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			l.t.Error(err)
		}
		<-done
	})
}

// run runs "apparate profile ...".
func (l *profileLab) run(args ...string) (string, error) {
	l.t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"profile"}, args...))
	err := root.ExecuteContext(context.Background())
	return out.String(), err
}

func (l *profileLab) must(args ...string) string {
	l.t.Helper()
	out, err := l.run(args...)
	if err != nil {
		l.t.Fatalf("apparate profile %q: %v\n%s", args, err, out)
	}
	return out
}

// fails runs a command that must fail with each of the hints in its error.
func (l *profileLab) fails(hints []string, args ...string) {
	l.t.Helper()
	out, err := l.run(args...)
	if err == nil {
		l.t.Errorf("apparate profile %q did not fail: %s", args, out)
		return
	}
	for _, h := range hints {
		if !strings.Contains(err.Error(), h) {
			l.t.Errorf("apparate profile %q: %q does not say %q", args, err, h)
		}
	}
}

func TestProfileCommands(t *testing.T) {
	l := newProfileLab(t)
	file := filepath.Join(t.TempDir(), "app.json")
	l.fails([]string{"no snapshotter answers"}, "record", l.image, "--status-address", l.socket)
	l.fails([]string{"no start-up profile", "apparate profile push"}, "show", l.image)
	if out := l.must("predict", l.image); !strings.Contains(out, "has the profile sha256:") || !strings.Contains(out, "1 chunks of 1 files") {
		t.Errorf("predict: %s", out)
	}
	if out := l.must("show", l.image); !strings.Contains(out, "before anybody had started it") || !strings.Contains(out, "bin/program") {
		t.Errorf("show what was predicted: %s", out)
	}
	var again []predicted
	if err := json.Unmarshal([]byte(l.must("predict", l.image, "-o", "json")), &again); err != nil || len(again) != 1 || again[0].Done {
		t.Errorf("predict again: %+v, %v", again, err)
	}
	l.serve()

	l.must("record", l.image, "--status-address", l.socket, "-o", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := api.DecodeSamples(raw); err != nil || len(list) != 1 || list[0].Manifest != l.digest {
		t.Fatalf("recorded %s, %v", raw, err)
	}
	if out := l.must("record", strings.TrimSuffix(l.image, ":v1-apparate"), "--status-address", l.socket); !strings.Contains(out, l.digest) {
		t.Errorf("without a tag: %s", out)
	}
	if out := l.must("show", file); !strings.Contains(out, "1 chunks of 1 layers") || !strings.Contains(out, "9 requests") || strings.Contains(out, "\x1b") {
		t.Errorf("show FILE: %q", out)
	}

	if out := l.must("push", l.image, file); !strings.Contains(out, "has the profile sha256:") || !strings.Contains(out, "of 1 start: 1 chunks in 1 groups") {
		t.Errorf("push: %s", out)
	}
	var made []profile.Made
	if err := json.Unmarshal([]byte(l.must("push", l.image, "--status-address", l.socket, "-o", "json")), &made); err != nil || len(made) != 1 || !made[0].Unchanged {
		t.Errorf("push again: %+v, %v", made, err)
	}
	out := l.must("show", l.image)
	for _, want := range []string{made[0].Descriptor.Digest, "in 1 groups; 1 chunks", "bin/program", "layer 1", "9 requests", "as estimated"} {
		if !strings.Contains(out, want) {
			t.Errorf("show IMAGE does not say %q:\n%s", want, out)
		}
	}
	var shown []shownProfile
	if err := json.Unmarshal([]byte(l.must("show", l.image, "-o", "json")), &shown); err != nil || len(shown) != 1 || shown[0].Layers[0].Chunks != 1 || shown[0].Foreign != 0 {
		t.Errorf("show as JSON: %+v, %v", shown, err)
	}
}

func TestProfileCommandsFail(t *testing.T) {
	l := newProfileLab(t)
	l.serve()
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte("no samples"), 0o644); err != nil {
		t.Fatal(err)
	}
	repo := strings.TrimSuffix(l.image, ":v1-apparate")
	l.fails([]string{"record, show, push or predict"}, "nonsense")
	l.fails([]string{"one image"}, "record")
	l.fails([]string{"use text or json"}, "show", l.image, "-o", "yaml")
	l.fails([]string{"--share"}, "push", l.image, "--share", "2")
	l.fails([]string{"not a list of samples", "apparate profile record"}, "push", l.image, bad)
	l.fails([]string{"does not exist"}, "push", repo+":none", "--status-address", l.socket)
	l.fails([]string{"has recorded no start of", "start a container"}, "record", repo+"/unknown:v1", "--status-address", l.socket)
	// The samples are of another image than the tag has: the plain one, say.
	l.fails([]string{"no sample is of", l.digest, "start it again"}, "push", l.plain, "--status-address", l.socket)
	l.fails([]string{"apparate convert", "-apparate"}, "show", l.plain)
}
