package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script writes a plugin as a shell script and returns it, ready to run.
func script(t *testing.T, version, text string) *plugin {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin")
	// Written elsewhere and moved: a program that is open for writing cannot run.
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	life := duration(0)
	c := pluginConfig{Name: "plugin", APIVersion: version, MatchImages: []string{"registry.test"}, DefaultCacheDuration: &life}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	p := newPlugin(c, path, slog.New(slog.DiscardHandler), func(string, error) {})
	t.Cleanup(p.close)
	return p
}

func TestPluginExec(t *testing.T) {
	for _, version := range protocols {
		t.Run(filepath.Base(version), func(t *testing.T) {
			dir := t.TempDir()
			p := script(t, version, fmt.Sprintf(`
cat > %[1]s/request
echo "$1 $2 $GREETING ${NOTIFY_SOCKET}${APPARATE_HELD}$LISTEN_FDS $(pwd)" > %[1]s/called
cat <<END
{"apiVersion": %[2]q, "kind": "CredentialProviderResponse", "cacheKeyType": "Image", "cacheDuration": "1h30m",
 "auth": {"registry.test": {"username": "me", "password": "p:1"}, "registry.test/team": {"username": "team", "password": "p2"},
  "other.test": {"username": "x", "password": "y"}, "*.test": {"username": "nobody"}}}
END
`, dir, version))
			p.Args = []string{"--log", "a b"}
			p.Env = append(p.Env, struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			}{"GREETING", "hello"})
			for _, v := range []string{"NOTIFY_SOCKET", "APPARATE_HELD", "LISTEN_FDS"} {
				t.Setenv(v, "ours")
			}
			creds, err := p.credentials(t.Context(), imageName{"registry.test", "team/app"})
			if err != nil {
				t.Fatal(err)
			}
			if want := []Credential{{"team", "p2"}, {"me", "p:1"}}; len(creds) != 2 || creds[0] != want[0] || creds[1] != want[1] {
				t.Errorf("credentials %#v", creds)
			}
			var request map[string]string
			b, err := os.ReadFile(filepath.Join(dir, "request"))
			if err == nil {
				err = json.Unmarshal(b, &request)
			}
			if err != nil || len(request) != 3 || request["apiVersion"] != version || request["kind"] != "CredentialProviderRequest" || request["image"] != "registry.test/team/app" {
				t.Errorf("request %s: %v", b, err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "called")); err != nil || string(b) != "--log a b hello  /\n" {
				t.Errorf("called with %q, %v", b, err)
			}
		})
	}
}

// A plugin that goes wrong is named, and nothing that it knows is told.
func TestPluginExecFails(t *testing.T) {
	good := `{"apiVersion":"` + protocols[0] + `","kind":"CredentialProviderResponse","cacheKeyType":"Image","auth":{"registry.test":{"username":"u","password":"hidden word"}}}`
	for name, c := range map[string]struct{ text, want string }{
		"exit status": {"echo 'cannot reach metadata' >&2; exit 3", "exit status 3: cannot reach metadata"},
		"nothing":     {"exit 0", "printed nothing"},
		"no JSON":     {"echo password=hidden", "not the JSON"},
		"a list":      {"echo '[\"hidden\"]'", "not the JSON"},
		"version":     {`echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","kind":"CredentialProviderResponse","cacheKeyType":"Image"}'`, "not a CredentialProviderResponse of"},
		"key type":    {`echo '{"apiVersion":"` + protocols[0] + `","kind":"CredentialProviderResponse","cacheKeyType":"Pod"}'`, "cacheKeyType"},
		"key":         {`echo '{"apiVersion":"` + protocols[0] + `","kind":"CredentialProviderResponse","cacheKeyType":"Image","auth":{"":{}}}'`, "a key of auth"},
		"long":        {"yes hidden hidden hidden", "more than 1048576 bytes"},
		"slow":        {"sleep 100", "did not answer within"},
		"talks":       {"echo '" + good + "'; echo 'debug: hidden word and dTpoaWRkZW4gd29yZA== from env-hidden; Authorization: Basic aGlkZGVuOmhpZGRlbg==' >&2; exit 1", "exit status 1: debug:"},
		"babbles":     {"head -c 3000000 /dev/zero | tr '\\0' x >&2; printf '\\033[31mred\\n\\n' >&2; exit 1", "exit status 1: "},
	} {
		t.Run(name, func(t *testing.T) {
			p := script(t, protocols[0], c.text)
			p.timeout = 2 * time.Second
			p.Env = append(p.Env, struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			}{"SECRET", "env-hidden"})
			_, err := p.credentials(t.Context(), imageName{"registry.test", "a"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if text := err.Error(); strings.Contains(text, "hidden") || strings.Contains(text, "aGlkZGVu") || strings.Contains(text, "dTpo") || strings.ContainsAny(text, "\n\x1b") || len(text) > 500 {
				t.Errorf("error: %s", text)
			}
			if !strings.HasPrefix(err.Error(), "credential provider plugin: ") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// The limit ends a plugin's children too, as does the end of a plugin that leaves one.
func TestPluginGroupIsKilled(t *testing.T) {
	answer := `{"apiVersion":"` + protocols[0] + `","kind":"CredentialProviderResponse","cacheKeyType":"Image","auth":{}}`
	for name, text := range map[string]string{"limit": "wait", "leaves a child": "echo '" + answer + "'"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "child")
			p := script(t, protocols[0], fmt.Sprintf("sleep 1000 & echo $! > %s.new; mv %s.new %s\n%s", file, file, file, text))
			if name == "limit" {
				p.timeout = 2 * time.Second
			}
			if _, err := p.credentials(t.Context(), imageName{"registry.test", "a"}); (err == nil) != (name != "limit") {
				t.Errorf("error: %v", err)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(string(b)))
			if err != nil {
				t.Fatal(err)
			}
			// Dead, though its new parent may not have buried it yet.
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
				if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && strings.Contains(string(b), ") Z ") {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("the child %d lives: %s", child, b)
				}
			}
		})
	}
}

func TestPluginProgram(t *testing.T) {
	p := script(t, protocols[0], "exit 0")
	for want, change := range map[string]func() error{
		"can be written by others": func() error { return os.Chmod(p.path, 0o777) },
		"is no program":            func() error { return os.Chmod(p.path, 0o600) },
		"there is no ":             func() error { return os.Remove(p.path) },
	} {
		q := script(t, protocols[0], "exit 0")
		p = q
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := q.credentials(t.Context(), imageName{"registry.test", "a"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	for _, s := range []string{
		`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"12h","auth":{"*.test":{"username":"u","password":"marked"}}}`,
		`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Global","cacheDuration":null,"auth":null}`,
		`{"cacheDuration":12}`, `[]`, ``, `{"auth":{"marked":1}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b, protocols[0])
		if err != nil {
			if strings.Contains(string(b), "marked") && strings.Contains(err.Error(), "marked") {
				t.Errorf("the error quotes the answer: %v", err)
			}
			return
		}
		for _, e := range a.entries {
			if e.Secret == "" || len(e.labels) == 0 {
				t.Errorf("entry %+v", e)
			}
		}
		for _, s := range a.secrets() {
			if s == "" {
				t.Error("an empty secret would be struck out everywhere")
			}
		}
	})
}
