package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shelf is a directory of credentials under test.
type shelf struct {
	*credentialsDir
	errs *LastErrors
	log  *strings.Builder
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{errs: NewLastErrors(5), log: &strings.Builder{}}
	s.credentialsDir = &credentialsDir{
		path: filepath.Join(t.TempDir(), "credentials"), log: slog.New(slog.NewTextHandler(s.log, nil)),
		report: func(what string, err error) { s.errs.Report("", what, err) }, files: map[string]*credentialsFile{},
	}
	return s
}

// put writes a file by rename, as our own programs do.
func (s *shelf) put(t *testing.T, name, text string) {
	t.Helper()
	full := filepath.Join(s.path, name)
	if err := errors.Join(os.MkdirAll(s.path, 0o700), os.WriteFile(full+".new", []byte(text), 0o600), os.Rename(full+".new", full)); err != nil {
		t.Fatal(err)
	}
}

// find returns what is known of a repository, as "origin user:secret".
func (s *shelf) find(t *testing.T, host, repo string) string {
	t.Helper()
	var all []string
	for _, c := range s.candidates(imageName{canonicalHost(host), repo}) {
		creds, err := c.get(context.Background())
		if err != nil {
			all = append(all, "error")
		}
		for _, cred := range creds {
			all = append(all, c.origin+" "+cred.User+":"+cred.Secret)
		}
	}
	return strings.Join(all, ", ")
}

func TestCredentialsDir(t *testing.T) {
	s := newShelf(t)
	expect := func(host, repo, want string) {
		t.Helper()
		for range 2 {
			if got := s.find(t, host, repo); got != want {
				t.Errorf("%s/%s: %q, want %q", host, repo, got, want)
			}
		}
	}
	expect("registry.test", "team/app", "") // no directory yet
	auth := base64.StdEncoding.EncodeToString([]byte("pod:p:1"))
	s.put(t, "pods.json", fmt.Sprintf(`{"auths":{"registry.test/team":{"auth":%q},"*.test":{"username":"wild","password":"w"},
		"registry.test/team/app":{"identitytoken":"id"},"https://index.docker.io/v1/":{"username":"hub","password":"h"}}}`, auth))
	s.put(t, "chart.json", `{"auths":{"registry.test":{"username":"chart","password":"c"},"empty.test":{}}}`)
	s.put(t, ".hidden.json", `{"auths":{"registry.test":{"username":"hidden","password":"c"}}}`)
	s.put(t, "notes.txt", `no JSON`)
	expect("registry.test", "team/app", "chart.json chart:c, pods.json :id, pods.json pod:p:1, pods.json wild:w")
	expect("registry.test", "team/other", "chart.json chart:c, pods.json pod:p:1, pods.json wild:w")
	expect("registry.test", "teams/other", "chart.json chart:c, pods.json wild:w")
	expect("registry-1.docker.io", "library/nginx", "pods.json hub:h")
	expect("empty.test", "a", "pods.json wild:w")
	expect("other.example", "a", "")

	s.put(t, "chart.json", `{"auths":{"registry.test":{"username":"chart","password":"d"}}}`)
	expect("registry.test", "x", "chart.json chart:d, pods.json wild:w")
	// Also one that is written in place.
	if err := os.WriteFile(filepath.Join(s.path, "chart.json"), []byte(`{"auths":{"registry.test":{"username":"chart","password":"longer"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("registry.test", "x", "chart.json chart:longer, pods.json wild:w")
	if err := os.Remove(filepath.Join(s.path, "pods.json")); err != nil {
		t.Fatal(err)
	}
	expect("registry.test", "x", "chart.json chart:longer")
	if s.log.Len() > 0 || len(s.errs.List()) > 0 {
		t.Errorf("log %s, reported %v", s.log, s.errs.List())
	}
}

// Files that others could have written are refused; those that others can read
// are used with a warning; nothing of them is told.
func TestCredentialsDirGuards(t *testing.T) {
	good := `{"auths":{"registry.test":{"username":"me","password":"hidden"}}}`
	for name, c := range map[string]struct {
		text string
		edit func(dir, file string) error
		want string // of find
		says string // reported, or in the log
	}{
		"read by others":    {good, func(_, f string) error { return os.Chmod(f, 0o644) }, "a.json me:hidden", "chmod 0600"},
		"written by others": {good, func(_, f string) error { return os.Chmod(f, 0o602) }, "error", "chmod go-w"},
		"open directory":    {good, func(d, _ string) error { return os.Chmod(d, 0o777) }, "error", "chmod go-w"},
		"another's":         {good, func(_, f string) error { return os.Chown(f, 12345, 0) }, "error", "belongs to user 12345"},
		"a pipe":            {good, func(_, f string) error { return errors.Join(os.Remove(f), syscall.Mkfifo(f, 0o600)) }, "error", "no regular file"},
		"a directory":       {good, func(_, f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o700)) }, "error", "no regular file"},
		"too long":          {good, func(_, f string) error { return os.Truncate(f, maxCredentialsFile+1) }, "error", "longer than"},
		"not JSON":          {`{"auths":{"registry.test":{"password":"hidden"`, nil, "error", "not of the form"},
		"another form":      {`{"auths":{"registry.test":"hidden"}}`, nil, "error", "not of the form"},
		"bad auth":          {`{"auths":{"registry.test":{"auth":"hidden!"},"x.test":{"auth":"aGlkZGVu"}}}`, nil, "", "not base64 of user:password"},
		"bad key":           {`{"auths":{"a b":{"username":"u","password":"hidden"}}}`, nil, "", "begins with no host"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			s.put(t, "a.json", c.text)
			file := filepath.Join(s.path, "a.json")
			if c.edit != nil {
				if err := c.edit(s.path, file); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if got := s.find(t, "registry.test", "a"); got != c.want {
					t.Errorf("found %q, want %q", got, c.want)
				}
			}
			said := s.log.String()
			for _, e := range s.errs.List() {
				said += e.Message
			}
			if !strings.Contains(said, c.says) || strings.Contains(said, "hidden") || strings.Contains(said, "aGlk") {
				t.Errorf("said %s, want %q", said, c.says)
			}
			// Mended, all is well again.
			if err := errors.Join(os.Chmod(s.path, 0o700), os.RemoveAll(file)); err != nil {
				t.Fatal(err)
			}
			s.put(t, "a.json", good)
			if got := s.find(t, "registry.test", "a"); got != "a.json me:hidden" || len(s.errs.List()) > 0 {
				t.Errorf("mended: %q, %v", got, s.errs.List())
			}
		})
	}
}

func FuzzParseAuths(f *testing.F) {
	for _, s := range []string{
		`{"auths":{"registry.test/team":{"auth":"bWU6bWFya2Vk"},"*.test":{"username":"u","password":"marked"},"x":{"identitytoken":"marked"}}}`,
		`{"auths":{"registry.test":{"auth":"marked"}}}`, `{"auths":null}`, `[]`, `{"auths":{"":{"auth":"Og=="}}}`,
		`{"configs":[{"auths":{"registry.test":{"username":"a:b","password":"marked"}}},{"auths":{"registry.test":{"auth":"/zr+"}}}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		auths, bad, err := ParseAuths(b)
		if err != nil && len(auths)+len(bad) > 0 {
			t.Errorf("entries beside the error %v", err)
		}
		list := entries(auths)
		if len(list) != len(auths) {
			t.Errorf("%d entries of %d", len(list), len(auths))
		}
		for _, e := range list {
			if e.Secret == "" || len(e.labels) == 0 {
				t.Errorf("entry %+v", e)
			}
		}
		text, err := MarshalAuths(auths)
		if err != nil {
			t.Fatal(err)
		}
		again, bad, err := ParseAuths(text)
		if err != nil || len(bad) > 0 || !sameEntries(list, entries(again)) {
			t.Errorf("written and read again: %+v, %v, %v; want %+v", again, bad, err, auths)
		}
	})
}

func sameEntries(a, b []entry) bool {
	text := func(list []entry) []string {
		all := make([]string, 0, len(list))
		for _, e := range list {
			all = append(all, fmt.Sprintf("%+v %q %q", e.pattern, e.User, e.Secret))
		}
		slices.Sort(all)
		return all
	}
	return slices.Equal(text(a), text(b))
}

// Several credentials for one key come back in their order; keys are those of images.
func TestAuths(t *testing.T) {
	text, err := MarshalAuths([]Auth{
		{Key("registry.test", "team/app"), Credential{"a", "1"}}, {"registry.test", Credential{"b", "2"}}, {Key("registry.test", "team/app"), Credential{"c:d", "3"}},
		{Key("registry.test", "v1/app"), Credential{"", "id"}}, {Key("registry.test", "team/app"), Credential{"e", "\xff4"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newShelf(t)
	s.put(t, "pods.json", string(text))
	for repo, want := range map[string]string{
		"team/app": "a:1 c:d:3 e:\xff4 b:2", "team/app/x": "a:1 c:d:3 e:\xff4 b:2", "app": "b:2", "v1/app": ":id b:2", "v1/other": "b:2",
	} {
		if got := strings.ReplaceAll(s.find(t, "registry.test", repo), "pods.json ", ""); got != strings.ReplaceAll(want, " ", ", ") {
			t.Errorf("%s: %q, want %q", repo, got, want)
		}
	}
	for key, want := range map[string]bool{"registry.test": true, "*.test/team": true, "registry.test/team/app": true, "registry.test/team/ap": false, "a b": false, "other.test": false} {
		if got := (Auth{Key: key}).For("registry.test", "team/app"); got != want {
			t.Errorf("%s is for the image: %v", key, got)
		}
	}
	auths, bad, err := ParseLegacyAuths([]byte(`{"registry.test":{"username":"a","password":"1"},"https://Registry.Test/v2/v2/x/":{"username":"b","password":"2"},"":{"password":"x"}}`))
	if err != nil || len(bad) != 1 || !slices.Equal(auths, []Auth{{"registry.test/v2/v2/x", Credential{"b", "2"}}, {"registry.test", Credential{"a", "1"}}}) {
		t.Errorf("dockercfg: %v, %v, %v", auths, bad, err)
	}
	if _, _, err := ParseLegacyAuths([]byte(`{"registry.test":"hidden"}`)); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("no dockercfg: %v", err)
	}
}

// Hundreds of credentials of pods leave room for other places, and the one that worked
// is tried wherever it stands.
func TestPlacesShare(t *testing.T) {
	many := make([]Credential, 0, 100)
	for i := range 100 {
		many = append(many, Credential{"pod", fmt.Sprint(i)})
	}
	list := []candidate{known("pods.json", many, nil), known("plugin", []Credential{{"plugin", "p"}}, nil)}
	tried := func(worked success) (all []string) {
		for c := newChoices(list, worked); ; {
			next, ok := c.next(t.Context())
			if !ok {
				return all
			}
			all = append(all, next.User+next.Secret)
		}
	}
	if got := tried(success{}); len(got) != 13 || got[0] != "pod0" || got[12] != "pluginp" {
		t.Errorf("tried %q", got)
	}
	if got := tried(success{"pods.json", many[99].fingerprint()}); len(got) != 13 || got[0] != "pod99" || got[1] != "pod0" {
		t.Errorf("tried %q", got)
	}
}

func TestLastErrors(t *testing.T) {
	l := NewLastErrors(2)
	l.Report("a", "1", errors.New("first"))
	l.Report("b", "1", errors.New("second"))
	l.Report("a", "1", errors.New("first again"))
	list := l.List()
	if len(list) != 2 || list[0].Host != "a" || list[0].Count != 2 || list[0].Message != "first again" || list[0].Since.After(list[0].Last) || list[1].Host != "b" {
		t.Errorf("%+v", list)
	}
	l.Report("c", "1", errors.New("third"))
	if list := l.List(); len(list) != 2 || list[0].Host != "c" || list[1].Host != "a" {
		t.Errorf("%+v", list)
	}
	l.Report("a", "2", nil)
	l.Report("a", "1", nil)
	if list := l.List(); len(list) != 1 || list[0].Host != "c" || time.Since(list[0].Last) < 0 {
		t.Errorf("%+v", list)
	}
}

func TestCredentialHidesItself(t *testing.T) {
	c := Credential{"me", "hidden"}
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, v := range []any{c, &c, []Credential{c}, choice{Credential: c}, entry{Credential: c}} {
			if s := fmt.Sprintf(f, v); strings.Contains(s, "hidden") {
				t.Errorf("%s of %T: %s", f, v, s)
			}
		}
	}
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "c", c)
	if strings.Contains(b.String(), "hidden") {
		t.Error(b.String())
	}
	for c, want := range map[Credential]string{{}: "anonymous", {Secret: "x"}: "identity token", c: "me:***"} {
		if c.String() != want {
			t.Errorf("%s, want %s", c, want)
		}
	}
}
