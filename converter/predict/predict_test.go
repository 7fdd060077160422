package predict

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// memory is a tree of texts; "-> x" is a symlink to x.
type memory map[string]string

func (m memory) Lstat(name string) (Info, bool) {
	if text, ok := m[name]; ok {
		if link, ok := strings.CutPrefix(text, "-> "); ok {
			return Info{Type: Symlink, Link: link}, true
		}
		return Info{Type: Regular, Size: int64(len(text))}, true
	}
	for other := range m {
		if strings.HasPrefix(other, name+"/") {
			return Info{Type: Directory}, true
		}
	}
	return Info{}, false
}

func (m memory) List(dir string) []string {
	names := map[string]bool{}
	for name := range m {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			names[first] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (m memory) Open(_ context.Context, name string) (io.ReaderAt, error) {
	if strings.HasPrefix(m[name], "broken") {
		return nil, errors.New("the registry is gone")
	}
	return strings.NewReader(m[name]), nil
}

func listed(t *testing.T, tree Tree, c Config) []string {
	t.Helper()
	ranges, err := Files(t.Context(), tree, c)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range ranges {
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}

// TestScript: the chain of interpreters, words of the command line, configuration.
func TestScript(t *testing.T) {
	tree := memory{
		"/docker-entrypoint.sh":     "#!/bin/sh -e\nexec \"$@\"\n",
		"/bin":                      "-> usr/bin",
		"/usr/bin/sh":               "-> dash",
		"/usr/bin/dash":             "\x7fELF, or so it says",
		"/usr/sbin/nginx":           "\x7fELF",
		"/etc/nginx/nginx.conf":     "daemon off;",
		"/etc/nginx/conf.d/x":       "not looked at: in another directory",
		"/usr/bin/env":              "\x7fELF",
		"/srv/tool":                 "#!/usr/bin/env dash\n",
		"/srv/loop":                 "-> loop",
		"/etc/passwd":               "root:x:0:0\n",
		"/never":                    "read",
		"/usr/share/nginx/unneeded": "x",
	}
	got := listed(t, tree, Config{Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;", "tool", "loop", "", "../../.."}, WorkingDir: "/srv"})
	want := []string{"/etc/passwd", "/docker-entrypoint.sh", "/usr/bin/dash", "/usr/sbin/nginx", "/etc/nginx/nginx.conf", "/srv/tool", "/usr/bin/env"}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	if got := listed(t, tree, Config{Cmd: []string{"absent"}}); !slices.Equal(got, []string{"/etc/passwd"}) {
		t.Errorf("of nothing: %q", got)
	}
	tree["/usr/bin/dash"] = "broken"
	if _, err := Files(t.Context(), tree, Config{Cmd: []string{"sh"}}); err == nil {
		t.Error("an error of reading was lost")
	}
}

// TestPython: what the interpreter and the program import, compiled where it is.
func TestPython(t *testing.T) {
	const lib = "/usr/lib/python3.11/"
	tree := memory{
		"/usr/bin/python3":                                           "-> python3.11",
		"/usr/bin/python3.11":                                        "\x7fELF",
		lib + "encodings/__init__.py":                                "import codecs\nfrom . import aliases\n",
		lib + "encodings/__pycache__/__init__.cpython-311.pyc":       "compiled",
		lib + "encodings/aliases.py":                                 "aliases = {}\n",
		lib + "encodings/utf_8.py":                                   "import codecs\n",
		lib + "codecs.py":                                            "def late():\n    import never\n",
		lib + "never.py":                                             "",
		lib + "json/__init__.py":                                     "\"\"\"Text\nimport never\n\"\"\"\nfrom .decoder import (JSONDecoder,\n    JSONDecodeError)\n",
		lib + "json/decoder.py":                                      "try:\n    from _json import scanstring as c\nexcept ImportError:\n    import never\n",
		lib + "lib-dynload/_json.cpython-311-x86_64-linux-gnu.so":    "\x7fELF",
		lib + "lib-dynload/_json.cpython-312-x86_64-linux-gnu.so":    "\x7fELF",
		"/usr/local/lib/python3.11/dist-packages/numpy/__init__.py":  "from . import core as c, version; import os.path\n",
		"/usr/local/lib/python3.11/dist-packages/numpy/core.abi3.so": "\x7fELF",
		"/app/main.py":                                               "#!/usr/bin/python3\nimport json, helper as h  # import never\nif True:\n    import never\n",
		"/app/helper.py":                                             "import numpy\nfrom ... import beyond\n",
	}
	want := []string{
		"/usr/bin/python3.11", lib + "encodings/__pycache__/__init__.cpython-311.pyc", lib + "encodings/aliases.py", lib + "encodings/utf_8.py", lib + "codecs.py",
		"/app/main.py", lib + "json/__init__.py", "/app/helper.py", lib + "json/decoder.py", "/usr/local/lib/python3.11/dist-packages/numpy/__init__.py",
		lib + "lib-dynload/_json.cpython-311-x86_64-linux-gnu.so", "/usr/local/lib/python3.11/dist-packages/numpy/core.abi3.so",
	}
	for _, c := range []Config{
		{Cmd: []string{"python3", "main.py"}, WorkingDir: "/app"},
		{Entrypoint: []string{"/app/main.py"}},
	} {
		got := listed(t, tree, c)
		slices.Sort(got)
		sorted := slices.Sorted(slices.Values(want))
		if !slices.Equal(got, sorted) {
			t.Errorf("%v: listed\n%s\nwant\n%s", c, strings.Join(got, "\n"), strings.Join(sorted, "\n"))
		}
	}
	got := listed(t, tree, Config{Cmd: []string{"python3", "-c", "import json"}})
	if !slices.Contains(got, lib+"json/decoder.py") {
		t.Errorf("of -c: %q", got)
	}
}

// system is this machine's own tree.
type system struct{}

func (system) Lstat(name string) (Info, bool) {
	st, err := os.Lstat(name)
	if err != nil {
		return Info{}, false
	}
	switch {
	case st.Mode().IsRegular():
		return Info{Type: Regular, Size: st.Size()}, true
	case st.IsDir():
		return Info{Type: Directory}, true
	case st.Mode()&os.ModeSymlink != 0:
		link, err := os.Readlink(name)
		return Info{Type: Symlink, Link: link}, err == nil
	}
	return Info{}, true
}

func (system) List(dir string) (names []string) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func (system) Open(_ context.Context, name string) (io.ReaderAt, error) {
	b, err := os.ReadFile(name)
	return strings.NewReader(string(b)), err
}

// TestLinked: a program of this machine, its interpreter and its C library.
func TestLinked(t *testing.T) {
	got := listed(t, system{}, Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin:/usr/bin"}})
	var bases []string
	for _, name := range got {
		bases = append(bases, path.Base(name))
	}
	text := strings.Join(bases, " ")
	if !strings.Contains(text, "libc") && !strings.Contains(text, "musl") || !strings.Contains(text, "ld-") {
		t.Errorf("sh reads %q", got)
	}
}

// FuzzFiles: nothing that is in an image makes it fail, or list what is not there.
func FuzzFiles(f *testing.F) {
	f.Add("\x7fELF\x02\x01\x01", "#!/a b\n", "import a\nfrom . import b\n", "a")
	f.Add("#!/b", "#!/a", "try:\n import a;from .. import (b\n", "/a")
	f.Fuzz(func(t *testing.T, a, b, source, word string) {
		tree := memory{"/a": a, "/b": b, "/usr/bin/python3.9": "\x7fELF", "/usr/lib/python3.9/encodings/__init__.py": source, "/etc/ld.so.conf": source}
		ranges, err := Files(t.Context(), tree, Config{Entrypoint: []string{word, "a"}, Cmd: []string{"python3.9", "-c", source}})
		if err != nil && !strings.HasPrefix(a+b, "broken") && !strings.Contains(b, "broken") {
			t.Fatal(err)
		}
		for _, r := range ranges {
			if text, ok := tree[r.Name]; !ok || r.Offset < 0 || r.Size <= 0 || r.Offset+r.Size > int64(len(text)) {
				t.Errorf("%+v of %d bytes", r, len(text))
			}
		}
	})
}
