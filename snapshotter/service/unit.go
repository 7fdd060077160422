package service

import (
	"fmt"
	"slices"
	"strings"
)

// unitFile is the text of a daemon's unit (systemd.unit(5), systemd.service(5)) for a
// systemd of the given version; kill is the path of that program, or empty.
func unitFile(d Daemon, version int, kill string) string {
	var s strings.Builder
	set := func(key, value string) { fmt.Fprintf(&s, "%s=%s\n", key, value) }
	list := func(key string, values []string) {
		if len(values) > 0 {
			set(key, strings.Join(values, " "))
		}
	}
	s.WriteString("# Written by apparate, which writes it anew: change it by a drop-in.\n[Unit]\n")
	set("Description", specifiers(oneLine(orText(d.Description, d.Name))))
	// The default dependencies are the right ones: local file systems, and no network.
	list("After", d.After)
	list("Before", d.Before)
	list("RequiresMountsFor", quoteAll(d.Mounts, false))
	// A daemon that keeps failing is tried for ever. After a limit systemd would give
	// it up, and close the descriptors that containers need.
	set("StartLimitIntervalSec", "0")

	s.WriteString("\n[Service]\n")
	set("Type", "notify")
	env := d.Env
	if d.Descriptors > 0 {
		env = append(slices.Clone(env), StoreEnv+"=1")
		set("FileDescriptorStoreMax", fmt.Sprint(d.Descriptors))
	}
	for _, e := range env {
		set("Environment", quote(e, false))
	}
	set("ExecStart", command(d.Argv))
	if kill != "" {
		set("ExecReload", kill+" -HUP $MAINPID")
	}
	if len(d.PostStart) > 0 {
		set("ExecStartPost", "-"+command(d.PostStart))
	}
	set("Restart", "always")
	set("RestartSec", "1")
	if version >= 254 {
		set("RestartSteps", "5")
		set("RestartMaxDelaySec", "30")
	}
	set("TimeoutStartSec", fmt.Sprintf("%dms", orDefault(d.StartTimeout).Milliseconds()))
	set("TimeoutStopSec", fmt.Sprintf("%dms", orDefault(d.StopTimeout).Milliseconds()))
	// The main process ends the others itself; what is left of them is killed.
	set("KillMode", "mixed")
	// Reads of every container end here: it is the last to go.
	set("OOMScoreAdjust", "-999")
	set("LimitNOFILE", "1048576")
	set("TasksMax", "infinity")

	s.WriteString("\n[Install]\n")
	set("WantedBy", "multi-user.target")
	return s.String()
}

func orText(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// oneLine makes control characters spaces.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// specifiers escapes what systemd would replace (systemd.unit(5), "Specifiers").
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// quote makes s one word (systemd.syntax(7), "Quoting"). In a command dollars are
// doubled, as variables are replaced there, and nowhere else.
func quote(s string, dollars bool) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '%' || c == '$' && dollars:
			b.WriteByte(c)
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoteAll(all []string, dollars bool) []string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = quote(s, dollars)
	}
	return words
}

// command is a command line. The program stands without quotes: its name needs none.
func command(argv []string) string {
	return strings.Join(append([]string{argv[0]}, quoteAll(argv[1:], true)...), " ")
}
