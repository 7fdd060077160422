package source

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const oneProvider = `
apiVersion: kubelet.config.k8s.io/%s
kind: CredentialProviderConfig
providers:
- name: one
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.dkr.ecr.*.amazonaws.com", "registry.test/team"]
  defaultCacheDuration: 12h0m0s
  args: [get, "--fast"]
  env: [{name: A, value: "1"}]
`

func TestParsePluginConfig(t *testing.T) {
	for _, version := range []string{"v1", "v1beta1", "v1alpha1"} {
		list, err := parsePluginConfig(fmt.Appendf(nil, oneProvider, version))
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %v %v", version, list, err)
		}
		p := list[0]
		if p.Name != "one" || len(p.Args) != 2 || p.Env[0].Value != "1" || p.DefaultCacheDuration == nil || p.usable() != nil {
			t.Errorf("%+v", p)
		}
		for name, want := range map[imageName]bool{
			{"1.dkr.ecr.eu.amazonaws.com", "a"}: true, {"registry.test", "teams/a"}: true,
			{"registry.test", "a"}: false, {"ecr.eu.amazonaws.com", "a"}: false,
		} {
			if p.matches(name) != want {
				t.Errorf("%s matches: %v", name, !want)
			}
		}
	}
	text := `{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[` +
		`{"name":"a","apiVersion":"credentialprovider.kubelet.k8s.io/v1","matchImages":["a"],"defaultCacheDuration":"0s","tokenAttributes":%s}]}`
	for attributes, want := range map[string]error{
		`{"serviceAccountTokenAudience":"x","requireServiceAccount":true}`:  errNeedsPod,
		`{"serviceAccountTokenAudience":"x"}`:                               errNeedsPod,
		`{"serviceAccountTokenAudience":"x","requireServiceAccount":false}`: nil,
		`null`: nil,
	} {
		list, err := parsePluginConfig(fmt.Appendf(nil, text, attributes))
		if err != nil {
			t.Fatal(err)
		}
		if err := list[0].usable(); !errors.Is(err, want) {
			t.Errorf("%s: %v", attributes, err)
		}
	}
}

func TestParsePluginConfigRefuses(t *testing.T) {
	for old, c := range map[string]struct{ now, want string }{
		"kind: CredentialProviderConfig":            {"kind: Pod", `kind "Pod"`},
		"kubelet.config.k8s.io/v1":                  {"kubelet.config.k8s.io/v9", "apiVersion"},
		"credentialprovider.kubelet.k8s.io/v1":      {"v1", `apiVersion "v1" of one`},
		"name: one":                                 {"name: ../one", "name"},
		"  defaultCacheDuration: 12h0m0s\n":         {"", "defaultCacheDuration of one is missing"},
		"12h0m0s":                                   {"-1s", "negative"},
		"defaultCacheDuration: 12h":                 {"defaultCacheDuration: soon", "12h, 30m or 90s"},
		"[\"*.dkr.ecr.*.amazonaws.com\", \"reg":     {"[\"\", \"reg", `matchImages of one: ""`},
		"matchImages: [\"*.dkr.ecr.*.amazonaws.com": {"other: [\"", "matchImages of one is empty"},
		"name: A":    {"name: A=B", "env of one"},
		"\"--fast\"": {"\"\\0\"", "args of one"},
		"providers:": {"providers: {", "not a CredentialProviderConfig"},
	} {
		text := fmt.Sprintf(oneProvider, "v1")
		changed := strings.Replace(text, old, c.now, 1)
		if changed == text {
			t.Fatalf("%q is not there", old)
		}
		if _, err := parsePluginConfig([]byte(changed)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.now, old, err, c.want)
		}
	}
}

// The configuration is read again when it changes. While it is wrong, what it
// said before holds; once it is gone there are no plugins.
func TestPluginsReload(t *testing.T) {
	dir := t.TempDir()
	errs := NewLastErrors(5)
	p := &plugins{config: filepath.Join(dir, "config.yaml"), bin: dir, log: slog.New(slog.DiscardHandler), report: func(w string, err error) { errs.Report("", w, err) }}
	t.Cleanup(p.close)
	n := imageName{"registry.test", "team/app"}
	origins := func() string {
		var all []string
		for _, c := range p.candidates(n) {
			all = append(all, c.origin)
		}
		return strings.Join(all, ", ")
	}
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		full := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(full+".new", []byte(text), mode), os.Chmod(full+".new", mode), os.Rename(full+".new", full)); err != nil {
			t.Fatal(err)
		}
	}
	good := fmt.Sprintf(oneProvider, "v1")
	expect := func(step, want string, troubles int) {
		t.Helper()
		for range 2 {
			if got := origins(); got != want {
				t.Errorf("%s: %q, want %q", step, got, want)
			}
		}
		if l := errs.List(); len(l) != troubles {
			t.Errorf("%s: reported %+v", step, l)
		}
	}
	expect("not there", p.config, 1)
	write("config.yaml", good, 0o600)
	expect("written", "credential provider one", 0)
	before := p.list[0]
	write("config.yaml", good+"# a remark\n", 0o600)
	expect("the same", "credential provider one", 0)
	if p.list[0] != before {
		t.Error("a plugin that did not change forgets its answers")
	}
	write("config.yaml", "providers: [", 0o600)
	expect("wrong", p.config+", credential provider one", 1)
	write("config.yaml", good, 0o666)
	expect("open to all", p.config+", credential provider one", 1)
	write("config.yaml", strings.ReplaceAll(good, "one", "two"), 0o600)
	expect("another", "credential provider two", 0)
	if !before.closed {
		t.Error("a plugin that was withdrawn is not closed")
	}
	if err := os.Remove(p.config); err != nil {
		t.Fatal(err)
	}
	expect("removed", p.config, 1)

	p.config = filepath.Join(dir, "d")
	if err := os.Mkdir(p.config, 0o700); err != nil {
		t.Fatal(err)
	}
	write("d/b.yaml", good, 0o600)
	write("d/a.yml", strings.ReplaceAll(good, "one", "two"), 0o600)
	write("d/c.txt", "rubbish", 0o600)
	if got := origins(); got != "credential provider two, credential provider one" {
		t.Errorf("a directory: %q", got)
	}
	write("d/d.json", `{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"one","apiVersion":"credentialprovider.kubelet.k8s.io/v1","matchImages":["x"],"defaultCacheDuration":"1s"}]}`, 0o600)
	if p.candidates(n); p.err == nil || !strings.Contains(p.err.Error(), "two providers named one") {
		t.Errorf("two of a name: %v", p.err)
	}
	p.close()
	if got := origins(); got != "" {
		t.Errorf("closed: %q", got)
	}
}

func FuzzParsePluginConfig(f *testing.F) {
	f.Add(fmt.Appendf(nil, oneProvider, "v1"))
	f.Add([]byte(`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"a","tokenAttributes":{}}]}`))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parsePluginConfig(b)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.Name == "" || strings.Contains(p.Name, "/") || len(p.match) != len(p.MatchImages) || len(p.match) == 0 || *p.DefaultCacheDuration < 0 {
				t.Errorf("%+v", p)
			}
			p.matches(imageName{"registry.test", "a"})
		}
	})
}
