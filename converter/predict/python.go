package predict

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var pythonName = regexp.MustCompile(`^python(3)\.(\d{1,2})$`)

// pythonVersion is the version that the name of a Python interpreter says, as "3.11".
func pythonVersion(program string) (version string, ok bool) {
	m := pythonName.FindStringSubmatch(path.Base(program))
	if m == nil {
		return "", false
	}
	return m[1] + "." + m[2], true
}

// pythonStart are the modules that the interpreter itself imports. From 3.11 on most are
// frozen into it.
var pythonStart = []string{"encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "_collections_abc", "_sitebuiltins"}

const frozenFrom = 11

// modules finds the modules of one interpreter.
type modules struct {
	p       *predictor
	version string
	dirs    []string // sys.path
	done    map[string]bool
	queue   []string // names of modules that were not looked at yet
}

// python lists what an interpreter reads at its start, and what the program imports that
// its arguments name.
func (p *predictor) python(ctx context.Context, version string) {
	m := &modules{p: p, version: version, done: map[string]bool{}}
	m.dirs = m.path()
	start := pythonStart
	if minor, _ := strconv.Atoi(strings.TrimPrefix(version, "3.")); minor >= frozenFrom {
		start = start[:3]
	}
	for _, name := range start {
		m.want(name)
	}
	m.run(ctx)
	argv := slices.Concat(p.c.Entrypoint, p.c.Cmd)
	for i, word := range argv {
		switch {
		case i > 0 && argv[i-1] == "-m":
			m.want(word)
			m.want(word + ".__main__")
		case i > 0 && argv[i-1] == "-c":
			m.imports(word, "")
		case strings.HasSuffix(word, ".py"):
			if name, ok := p.argument(word); ok {
				m.script(ctx, name)
			}
		}
		m.run(ctx)
	}
}

// path is where modules are looked for.
func (m *modules) path() (dirs []string) {
	if list := m.p.env["PYTHONPATH"]; list != "" {
		dirs = append(dirs, strings.Split(list, ":")...)
	}
	for _, prefix := range []string{m.p.env["VIRTUAL_ENV"], "/usr/local", "/usr"} {
		if prefix == "" {
			continue
		}
		lib := path.Join("/", prefix, "lib", "python"+m.version)
		dirs = append(dirs, lib, path.Join(lib, "lib-dynload"), path.Join(lib, "site-packages"), path.Join(lib, "dist-packages"))
	}
	return append(dirs, "/usr/lib/python3/dist-packages")
}

// script lists a program in Python, which finds modules beside itself first.
func (m *modules) script(ctx context.Context, name string) {
	m.p.whole(name)
	info, _ := m.p.t.Lstat(name)
	m.dirs = append([]string{path.Dir(name)}, m.dirs...)
	m.imports(m.p.text(ctx, name, info), "")
}

// want notes that a module is imported, and with it the packages that it is in.
func (m *modules) want(name string) {
	const maxName = 256
	if name == "" || len(name) > maxName || strings.Contains(name, "/") {
		return
	}
	for i, c := range name + "." {
		if c == '.' && !m.done[name[:i]] && len(m.done) < maxFiles {
			m.done[name[:i]] = true
			m.queue = append(m.queue, name[:i])
		}
	}
}

// run looks at the modules that are wanted until none is left.
func (m *modules) run(ctx context.Context) {
	for len(m.queue) > 0 && m.p.err == nil && ctx.Err() == nil {
		next := m.queue[0]
		m.queue = m.queue[1:]
		m.load(ctx, next)
	}
}

// load lists the file of a module and notes what that imports.
func (m *modules) load(ctx context.Context, name string) {
	rel := strings.ReplaceAll(name, ".", "/")
	for _, dir := range m.dirs {
		base := path.Join("/", dir, rel)
		for _, file := range []string{base + "/__init__.py", base + ".py"} {
			if found, info, ok := m.p.regular(file); ok {
				m.source(ctx, found, info, name, strings.HasSuffix(file, "/__init__.py"))
				return
			}
		}
		if lib, ok := m.extension(base); ok {
			m.p.library(ctx, lib)
			return
		}
	}
}

// extension finds a module that is a library.
func (m *modules) extension(base string) (string, bool) {
	short := strings.Replace(m.version, ".", "", 1)
	for _, name := range m.p.t.List(path.Dir(base)) {
		rest, ok := strings.CutPrefix(name, path.Base(base)+".")
		if ok && strings.HasSuffix(rest, "so") && (rest == "so" || strings.HasPrefix(rest, "abi3.") || strings.HasPrefix(rest, "cpython-"+short)) {
			return path.Join(path.Dir(base), name), true
		}
	}
	return "", false
}

// source lists a module's compiled form where there is one, else its text, and notes its
// imports.
func (m *modules) source(ctx context.Context, file string, info Info, name string, pkg bool) {
	if !m.p.first(file) {
		return
	}
	short := strings.Replace(m.version, ".", "", 1)
	compiled := path.Join(path.Dir(file), "__pycache__", strings.TrimSuffix(path.Base(file), ".py")+".cpython-"+short+".pyc")
	if _, ok := m.p.whole(compiled); !ok {
		m.p.add(file, 0, min(info.Size, wholeFile))
	}
	if !pkg {
		name = parent(name)
	}
	m.imports(m.p.text(ctx, file, info), name)
}

// parent is the package that a module is in, "" for none.
func parent(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i]
	}
	return ""
}

// imports notes the modules that a text in Python imports whenever it is run: by
// statements at its outermost level, or in a try there. pkg is the package it is in.
func (m *modules) imports(source, pkg string) {
	for _, name := range importsOf(source, pkg) {
		m.want(name)
	}
}

var (
	importLine = regexp.MustCompile(`^import\s+(.+)$`)
	fromLine   = regexp.MustCompile(`^from\s+(\.*)([\w.]*)\s+import\s+(.+)$`)
	identifier = regexp.MustCompile(`^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$`)
)

// importsOf are the names of modules that a text imports. Of "from a import b" both "a"
// and "a.b" are among them: only the files tell whether b is a module.
func importsOf(source, pkg string) (names []string) {
	add := func(name string) {
		if identifier.MatchString(name) {
			names = append(names, name)
		}
	}
	for _, statement := range statements(source) {
		if g := importLine.FindStringSubmatch(statement); g != nil {
			for _, part := range strings.Split(g[1], ",") {
				if f := strings.Fields(part); len(f) > 0 {
					add(f[0])
				}
			}
			continue
		}
		g := fromLine.FindStringSubmatch(statement)
		if g == nil {
			continue
		}
		from := g[2]
		if dots := len(g[1]); dots > 0 {
			base := pkg
			for range dots - 1 {
				base = parent(base)
			}
			from = strings.Trim(base+"."+g[2], ".")
		}
		add(from)
		for _, part := range strings.Split(strings.Trim(g[3], "() "), ",") {
			if f := strings.Fields(part); len(f) > 0 && f[0] != "*" {
				add(strings.Trim(from+"."+f[0], "."))
			}
		}
	}
	return names
}

// statements are the lines of a text that are run whenever it is: those that are not
// indented, and those of a try; without comments and texts in quotes of three, a list in
// parentheses as one line.
func statements(source string) (lines []string) {
	quoted, trying, open := false, false, ""
	for line := range strings.Lines(source) {
		line = strings.TrimRight(line, "\r\n")
		if n := strings.Count(line, `"""`) + strings.Count(line, "'''"); n > 0 {
			if n%2 == 1 {
				quoted = !quoted
			}
			continue
		}
		line, _, _ = strings.Cut(line, "#")
		body := strings.TrimSpace(line)
		if quoted || body == "" {
			continue
		}
		if open != "" {
			if open += " " + body; strings.Contains(body, ")") || len(open) > maxText {
				lines, open = append(lines, open), ""
			}
			continue
		}
		indented := line[0] == ' ' || line[0] == '\t'
		if !indented {
			trying = body == "try:"
		}
		if indented && !trying {
			continue
		}
		for _, part := range strings.Split(body, ";") {
			part = strings.TrimSpace(part)
			if strings.HasPrefix(part, "from ") && strings.Contains(part, "(") && !strings.Contains(part, ")") {
				open = part
				continue
			}
			lines = append(lines, part)
		}
	}
	return lines
}
