package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/test/registry"
)

// options are Options that look at nothing outside the test.
func options(t *testing.T) source.Options {
	dir := t.TempDir()
	return source.Options{
		HostsDirs:    []string{filepath.Join(dir, "certs.d")},
		DockerConfig: filepath.Join(dir, "docker"),
		Fetch:        fetch.Config{Backoff: time.Millisecond, MaxBackoff: time.Millisecond},
		Logger:       slog.New(slog.DiscardHandler),
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// login writes a docker config.json with credentials for host.
func login(t *testing.T, o source.Options, host, user, password string) {
	t.Helper()
	write(t, filepath.Join(o.DockerConfig, "config.json"),
		fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, host, user, password))
}

// check reads a range of a blob that holds data.
func check(t *testing.T, r *source.Resolver, ref string, data []byte) {
	t.Helper()
	b, err := r.Open(t.Context(), ref, digest.FromBytes(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	readsRight(t, b, data)
}

func readsRight(t *testing.T, b fetch.Blob, data []byte) {
	t.Helper()
	p := make([]byte, 100)
	if err := fetch.ReadAt(t.Context(), b, p, 50); err != nil {
		t.Error(err)
	} else if !bytes.Equal(p, data[50:150]) {
		t.Error("wrong bytes")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	data := fetchtest.Random(1000)
	for label, opts := range map[string][]registry.Option{
		"plain":       nil,
		"TLS":         {registry.WithTLS()},
		"client cert": {registry.WithClientCert()},
		"basic":       {registry.WithBasic("user", "secret-password")},
		"token":       {registry.WithToken("user", "secret-password", 0)},
		"cloud":       {registry.WithTLS(), registry.WithToken("user", "secret-password", 1), registry.WithRedirect(1)},
	} {
		t.Run(label, func(t *testing.T) {
			reg := registry.New(t, opts...)
			reg.AddBlob(t, data)
			o := options(t)
			login(t, o, reg.Host(), "user", "secret-password")
			if strings.HasPrefix(reg.URL(), "https:") {
				reg.WriteCerts(t, o.HostsDirs[0])
			}
			r := source.New(o)
			for range 3 {
				check(t, r, reg.Host()+"/team/app:v1", data)
			}
			b, err := r.Open(t.Context(), reg.Host()+"/team/app:v1", digest.FromBytes(data), 0)
			if err != nil {
				t.Fatal(err)
			}
			if b.Size() != 1000 {
				t.Errorf("size found = %d", b.Size())
			}
			readsRight(t, b, data)
		})
	}
}

func TestOpenDoesNoIO(t *testing.T) {
	reg := registry.New(t)
	r := source.New(options(t))
	if _, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromString("x"), 5); err != nil {
		t.Error(err)
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if _, err := r.Open(t.Context(), "A B", digest.FromString("x"), 5); err == nil {
		t.Error("a bad reference was accepted")
	}
	if _, err := r.Open(t.Context(), reg.Host()+"/a:1", "sha256:x", 5); err == nil {
		t.Error("a bad digest was accepted")
	}
}

func TestMirror(t *testing.T) {
	data := fetchtest.Random(1000)
	upstream, mirror := registry.New(t), registry.New(t, registry.WithBasic("mirror-user", "p"))
	upstream.AddBlob(t, data)
	mirror.AddBlob(t, data)
	o := options(t)
	login(t, o, mirror.Host(), "mirror-user", "p")
	// The reference's host need not exist at all.
	write(t, filepath.Join(o.HostsDirs[0], "registry.test", "hosts.toml"), fmt.Sprintf(`
server = %q
[host.%q]
  capabilities = ["pull"]
  [host.%q.header]
    X-Mirror = ["yes"]
`, upstream.URL(), mirror.URL(), mirror.URL()))
	r := source.New(o)
	check(t, r, "registry.test/team/app:v1", data)
	if mirror.Count() != 2 || upstream.Count() != 0 { // a challenge and the blob
		t.Errorf("%d requests to the mirror, %d to the registry", mirror.Count(), upstream.Count())
	}
	for _, q := range mirror.Requests() {
		if q.NS != "registry.test" || q.Header.Get("X-Mirror") != "yes" || q.Header.Get("User-Agent") != "apparate" {
			t.Errorf("mirror got ns=%q, header %v", q.NS, q.Header)
		}
	}
	mirror.FailEvery(1, registry.NotFound)
	check(t, r, "registry.test/team/app:v1", data)
	if upstream.Count() != 1 || upstream.Requests()[0].Header.Get("X-Mirror") != "" {
		t.Errorf("upstream: %+v", upstream.Requests())
	}
}

func TestPlainHTTP(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t)
	reg.AddBlob(t, data)
	o := options(t)
	o.PlainHTTP = []string{reg.Host()}
	check(t, source.New(o), reg.Host()+"/a:1", data)
}

// TestLayersShareToken opens many layers at once, as the start of a container does.
func TestLayersShareToken(t *testing.T) {
	reg := registry.New(t, registry.WithToken("user", "p", 0))
	o := options(t)
	login(t, o, reg.Host(), "user", "p")
	r := source.New(o)
	for round := 1; round <= 3; round++ {
		var wg sync.WaitGroup
		for i := range 20 {
			data := fetchtest.Random(1000 + i)
			reg.AddBlob(t, data)
			wg.Go(func() {
				p := make([]byte, 100)
				b, err := r.Open(t.Context(), reg.Host()+"/team/app:v1", digest.FromBytes(data), int64(len(data)))
				if err != nil {
					t.Error(err)
				} else if err := fetch.ReadAt(t.Context(), b, p, 0); err != nil || !bytes.Equal(p, data[:100]) {
					t.Errorf("layer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if reg.Tokens() != round {
			t.Errorf("round %d: %d tokens for 20 layers", round, reg.Tokens())
		}
		reg.ExpireTokens() // though they said five minutes
	}
}

func TestCredentialsRotate(t *testing.T) {
	data := fetchtest.Random(1000)
	for label, opt := range map[string]registry.Option{
		"basic": registry.WithBasic("user", "old"), "token": registry.WithToken("user", "old", 0),
	} {
		t.Run(label, func(t *testing.T) {
			reg := registry.New(t, opt)
			reg.AddBlob(t, data)
			o := options(t)
			r := source.New(o)
			ref := reg.Host() + "/team/app:v1"
			b, err := r.Open(t.Context(), ref, digest.FromBytes(data), 1000)
			if err != nil {
				t.Fatal(err)
			}
			refused := func(when string) {
				t.Helper()
				err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0)
				if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Temporary || strings.Contains(err.Error(), "secret-") {
					t.Errorf("%s: %v, want a lasting *fetch.Error", when, err)
				}
			}
			refused("no credentials")
			login(t, o, reg.Host(), "user", "old")
			readOK := func(when string) {
				t.Helper()
				if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			readOK("logged in")
			reg.SetPassword("user", "new")
			refused("password changed")
			login(t, o, reg.Host(), "user", "new")
			readOK("logged in again")
			check(t, r, ref, data)
		})
	}
}

// TestCAAppears begins without the registry's CA.
func TestCAAppears(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithClientCert())
	reg.AddBlob(t, data)
	o := options(t)
	r := source.New(o)
	b, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromBytes(data), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err == nil {
		t.Error("read without a client certificate")
	}
	reg.WriteCerts(t, o.HostsDirs[0])
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// TestCancelledReaderSpoilsNothing cancels the reader that fetches the token.
func TestCancelledReaderSpoilsNothing(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithToken("user", "p", 0))
	reg.AddBlob(t, data)
	o := options(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	o.Credentials = func(context.Context, string, string) ([]source.Credential, error) {
		once.Do(func() { close(asked); <-release })
		return []source.Credential{{User: "user", Secret: "p"}}, nil
	}
	r := source.New(o)
	b, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromBytes(data), 1000)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fetch.ReadAt(ctx, b, make([]byte, 10), 0) }()
	<-asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled reader = %v", err)
	}
	close(release)
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

func TestCredentialHelper(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithBasic("helped", "p"))
	reg.AddBlob(t, data)
	o := options(t)
	bin := t.TempDir()
	script := "#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"p\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	// A path to the file itself does as well.
	o.DockerConfig = filepath.Join(o.DockerConfig, "config.json")
	write(t, o.DockerConfig, fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, reg.Host()))
	check(t, source.New(o), reg.Host()+"/a:1", data)
}
