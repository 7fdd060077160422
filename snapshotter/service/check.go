package service

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var (
	validName    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)
	validProgram = regexp.MustCompile(`^/[A-Za-z0-9/._+@-]+$`)
	validEnv     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=[^\x00]*$`)
	validUnit    = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]+\.[a-z]+$`)
)

// check finds what no manager can do.
func (d Daemon) check() error {
	if !validName.MatchString(d.Name) {
		return fmt.Errorf("service name %q: use lower case letters, digits and dashes", d.Name)
	}
	for what, argv := range map[string][]string{"Argv": d.Argv, "PostStart": d.PostStart} {
		if len(argv) == 0 && what == "PostStart" {
			continue
		}
		if len(argv) == 0 || !validProgram.MatchString(argv[0]) || filepath.Clean(argv[0]) != argv[0] {
			return fmt.Errorf("service %s: %s %q: its first word has to be an absolute path of letters, digits and /._+@-", d.Name, what, argv)
		}
		for _, a := range argv {
			if strings.ContainsRune(a, 0) {
				return fmt.Errorf("service %s: %s: %q has a zero byte", d.Name, what, a)
			}
		}
	}
	for _, e := range d.Env {
		if !validEnv.MatchString(e) {
			key, _, _ := strings.Cut(e, "=")
			return fmt.Errorf("service %s: Env: variable %q: use KEY=VALUE, KEY of letters, digits and _", d.Name, key)
		}
	}
	for _, u := range append(append([]string{}, d.Before...), d.After...) {
		if !validUnit.MatchString(u) {
			return fmt.Errorf("service %s: %q is no name of a unit", d.Name, u)
		}
	}
	for _, m := range d.Mounts {
		if !filepath.IsAbs(m) || strings.ContainsRune(m, 0) {
			return fmt.Errorf("service %s: Mounts: %q is no absolute path", d.Name, m)
		}
	}
	return nil
}

// orDefault is a time out.
func orDefault(d time.Duration) time.Duration {
	if d <= 0 {
		return time.Minute
	}
	return d
}

// line is the last line of an output, cut where it is long.
func lastLine(out []byte) string {
	const most = 400
	s := strings.TrimSpace(string(out))
	s = strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
