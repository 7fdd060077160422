package source_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/test/registry"
)

// secrets are the passwords below; none may be told.
var secrets = []string{"secret-", "c2VjcmV0", "dXNlcj"} // the last two as base64

// keyring is a directory with all sources of credentials.
type keyring struct {
	source.Options
	errs *source.LastErrors
	log  *syncBuffer
	bin  string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newKeyring(t *testing.T) *keyring {
	t.Helper()
	dir := t.TempDir()
	k := &keyring{Options: options(t), errs: source.NewLastErrors(10), log: &syncBuffer{}, bin: filepath.Join(dir, "bin")}
	k.CredentialsDir, k.ProviderConfig, k.ProviderBinDir = filepath.Join(dir, "credentials"), filepath.Join(dir, "config.yaml"), k.bin
	k.Report, k.Logger = k.errs.Report, slog.New(slog.NewTextHandler(k.log, nil))
	for _, d := range []string{k.CredentialsDir, k.bin} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	k.plugin(t, "registry.test", "", "")
	return k
}

// file writes a file of the directory of credentials.
func (k *keyring) file(t *testing.T, name, key, user, password string) {
	t.Helper()
	write(t, filepath.Join(k.CredentialsDir, name), fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, key, user, password))
}

// plugin configures a plugin for host; it counts its runs in the file runs.
func (k *keyring) plugin(t *testing.T, host, user, password string) {
	t.Helper()
	write(t, k.ProviderConfig, fmt.Sprintf(`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[
		{"name":"plugin","apiVersion":"credentialprovider.kubelet.k8s.io/v1","matchImages":[%q],"defaultCacheDuration":"1h"}]}`, host))
	path := filepath.Join(k.bin, "plugin")
	text := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho run >> %s/runs\necho 'log: %s' >&2\n"+
		`echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{"%s":{"username":"%s","password":"%s"}}}'`+"\n",
		k.bin, password, host, user, password)
	if err := os.WriteFile(path+".new", []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (k *keyring) runs(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.bin, "runs"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func (k *keyring) resolver(t *testing.T) *source.Resolver {
	r := source.New(k.Options)
	t.Cleanup(r.Close)
	return r
}

// toldNothing checks what was logged and reported, and more.
func (k *keyring) toldNothing(t *testing.T, more ...any) {
	t.Helper()
	text := fmt.Sprint(k.log, k.errs.List(), more)
	for _, s := range secrets {
		if strings.Contains(text, s) {
			t.Errorf("%q is told: %s", s, text)
		}
	}
}

// readMany reads of many layers at once, as the start of a container does.
func readMany(t *testing.T, r *source.Resolver, reg *registry.Registry, repo string) (failed []error) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 20 {
		data := fetchtest.Random(1000 + i)
		d := reg.AddBlob(t, data)
		wg.Go(func() {
			b, err := r.Open(t.Context(), reg.Host()+"/"+repo, d, int64(len(data)))
			p := make([]byte, 100)
			if err == nil {
				err = fetch.ReadAt(t.Context(), b, p, 10)
			}
			if err == nil && !bytes.Equal(p, data[10:110]) {
				err = fmt.Errorf("layer %d has other bytes", i)
			}
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// The sources are asked in turn, whichever knows the right password; readers see
// no error, and there is one token for all of them.
func TestSourcesInTurn(t *testing.T) {
	for scheme, opt := range map[string]registry.Option{
		"token": registry.WithToken("user", "secret-right", 0), "basic": registry.WithBasic("user", "secret-right"),
	} {
		for right, runs := range map[string]int{"chart.json": 0, "pods.json": 0, "plugin": 1, "docker": 1, "program": 0} {
			t.Run(scheme+" "+right, func(t *testing.T) {
				reg := registry.New(t, opt)
				k := newKeyring(t)
				password := func(where string) string {
					if where == right {
						return "secret-right"
					}
					return "secret-wrong-" + where
				}
				k.file(t, "chart.json", reg.Host(), "user", password("chart.json"))
				k.file(t, "pods.json", reg.Host()+"/team", "user", password("pods.json"))
				k.plugin(t, reg.Host(), "user", password("plugin"))
				login(t, k.Options, reg.Host(), "user", password("docker"))
				if right == "program" {
					k.Credentials = func(_ context.Context, host, repo string) ([]source.Credential, error) {
						if host != reg.Host() || repo != "team/app" {
							t.Errorf("asked for %s/%s", host, repo)
						}
						return []source.Credential{{User: "user", Secret: "secret-right"}}, nil
					}
				}
				r := k.resolver(t)
				for round := range 3 {
					for _, err := range readMany(t, r, reg, "team/app:v1") {
						t.Error(err)
					}
					if want := round + 1; scheme == "token" && reg.Tokens() != want {
						t.Errorf("round %d: %d tokens, want %d", round, reg.Tokens(), want)
					}
					reg.ExpireTokens()
				}
				asked := 0
				for _, q := range reg.Requests() {
					if q.Path == "/token" {
						asked++
					}
				}
				// Each wrong password once, by both ways to get a token.
				if most := 3 + 2*4; asked > most {
					t.Errorf("%d questions for a token, want at most %d", asked, most)
				}
				if n := k.runs(t); n != runs {
					t.Errorf("the plugin ran %d times, want %d", n, runs)
				}
				if l := k.errs.List(); len(l) > 0 {
					t.Errorf("reported: %+v", l)
				}
				k.toldNothing(t)
			})
		}
	}
}

// Where all are wrong the registry, the repository and each source are named, no
// secret is; a right one ends the trouble without a restart.
func TestAllSourcesWrong(t *testing.T) {
	reg := registry.New(t, registry.WithToken("user", "secret-right", 0))
	k := newKeyring(t)
	k.file(t, "chart.json", reg.Host(), "user", "secret-wrong-1")
	k.file(t, "pods.json", reg.Host()+"/other", "user", "secret-right") // of another repository
	k.plugin(t, reg.Host(), "user", "secret-wrong-2")
	login(t, k.Options, reg.Host(), "user", "secret-wrong-3")
	r := k.resolver(t)
	failed := readMany(t, r, reg, "team/app:v1")
	if len(failed) != 20 {
		t.Fatalf("%d of 20 failed", len(failed))
	}
	l := k.errs.List()
	if len(l) != 1 || l[0].Host != reg.Host() || l[0].Repo != "team/app" {
		t.Fatalf("reported: %+v", l)
	}
	for _, want := range []string{"registry " + reg.Host() + " refuses the credentials for team/app: ", "chart.json: ", "credential provider plugin: ", "config.json: ", "401"} {
		if !strings.Contains(l[0].Message, want) {
			t.Errorf("%q is not in %s", want, l[0].Message)
		}
	}
	if strings.Contains(l[0].Message, "\n") {
		t.Error("more than one line")
	}
	_, _, err := r.Resolve(t.Context(), reg.Host()+"/team/app:v1", "")
	k.toldNothing(t, failed, err)
	k.file(t, "chart.json", reg.Host(), "user", "secret-right")
	for _, err := range readMany(t, r, reg, "team/app:v1") {
		t.Error(err)
	}
	if l := k.errs.List(); len(l) > 0 {
		t.Errorf("still reported: %+v", l)
	}
	k.toldNothing(t)
}

// A plugin that fails is named and does not keep the other sources from working,
// nor a public image from being read.
func TestPluginFails(t *testing.T) {
	reg := registry.New(t, registry.WithToken("user", "secret-right", 0))
	public := registry.New(t)
	k := newKeyring(t)
	k.plugin(t, reg.Host(), "user", "")
	write(t, filepath.Join(k.bin, "plugin"), "#!/bin/sh\necho 'no metadata, Bearer secret-abcdefgh' >&2\nexit 7\n")
	if err := os.Chmod(filepath.Join(k.bin, "plugin"), 0o700); err != nil {
		t.Fatal(err)
	}
	login(t, k.Options, reg.Host(), "user", "secret-right")
	r := k.resolver(t)
	for _, err := range readMany(t, r, reg, "team/app:v1") {
		t.Error(err)
	}
	l := k.errs.List()
	if len(l) != 1 || l[0].Host != "" || l[0].Repo != "credential provider plugin" || !strings.Contains(l[0].Message, "exit status 7: no metadata") {
		t.Errorf("reported: %+v", l)
	}
	for _, err := range readMany(t, r, public, "team/app:v1") {
		t.Error(err)
	}
	k.toldNothing(t)
}
