package pullsecret

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const hidden = "s3cr3t-w0rd"

// entry makes the JSON of a good entry; more are further fields.
func entry(more string) string {
	return fmt.Sprintf(`{"dockerUsername":"u","dockerPassword":%q,"dockerServer":"r.example.com"%s}`, hidden, more)
}

func TestParse(t *testing.T) {
	c, err := Parse([]byte(entry("")))
	if err != nil || len(c.Mistakes) > 0 || len(c.Entries) != 1 {
		t.Fatal(c, err)
	}
	e := c.Entries[0]
	if e.Name != "apparate-r-example-com" || !e.For("any") || c.In("any")[e.Name] == nil {
		t.Errorf("defaults: %+v", e)
	}
	var content struct{ Auths map[string]map[string]string }
	if err := json.Unmarshal(e.DockerConfig(), &content); err != nil {
		t.Fatal(err)
	}
	if a := content.Auths["r.example.com"]; a["username"] != "u" || a["password"] != hidden || a["auth"] != "dTpzM2NyM3QtdzByZA==" {
		t.Errorf("the content is %v", content)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", e, e, e, c.Entries); strings.Contains(s, hidden) {
		t.Error("printing shows the password:", s)
	}

	c, err = Parse([]byte("[" + entry(`,"name":"a","namespaces":" team-b, team-a,","serviceAccounts":"builder","type":"docker"`) + "," +
		entry(`,"name":"a","namespaces":"team-c"`) + "]"))
	if err != nil || len(c.Mistakes) > 0 {
		t.Fatal(c.Mistakes, err)
	}
	if c.In("team-a")["a"] == nil || c.In("team-c")["a"].For("x") == c.In("team-a")["a"].For("x") || len(c.In("team")) > 0 {
		t.Errorf("%+v", c.Entries)
	}
	for _, text := range []string{"[]", " [ ] ", "null"} {
		if c, err := Parse([]byte(text)); err != nil || len(c.Entries)+len(c.Mistakes) > 0 {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
}

// TestMistakes: each names its entry and field, and shows no password.
func TestMistakes(t *testing.T) {
	good := entry(`,"name":"good"`)
	for _, c := range []struct{ text, want string }{
		{`{}`, "dockerUsername is missing"},
		{`{"dockerUsername":"u","dockerServer":"r"}`, "dockerPassword is missing"},
		{`{"dockerUsername":"u","dockerPassword":"s3cr3t-w0rd"}`, "dockerServer is missing"},
		{`{"dockerUsername":"u","dockerPassword":12345678,"dockerServer":"r"}`, "dockerPassword is no string"},
		{`{"dockerUsername":"u:s3cr3t-w0rd","dockerPassword":"p","dockerServer":"r"}`, "dockerUsername has a colon"},
		{`{"dockerUsername":"u","dockerPassword":"s3cr3t-w0rd\n","dockerServer":"r"}`, "dockerPassword has a line break"},
		{`{"dockerUsername":"u","dockerPassword":"p","dockerServer":"https://u:s3cr3t-w0rd@r"}`, "dockerServer is no host"},
		{`{"dockerUsername":"u","dockerPassword":"p","dockerServer":"a b"}`, "dockerServer is no host"},
		{entry(`,"type":"helm"`), "type is not docker"},
		{entry(`,"name":"Not_A_Name"`), "name is no name of a Secret"},
		{entry(`,"namespaces":"a b"`), "namespaces has the name"},
		{entry(`,"namespaces":","`), "namespaces has no name"},
		{entry(`,"serviceAccounts":"A"`), "serviceAccounts has the name"},
		{entry(`,"s3cr3t-w0rd":"A"`), "1 unknown fields"},
		{entry(`,"name":"good","namespaces":"x"`), "name is that of an earlier one"},
		{`17`, "it is no object"},
		{`null`, "it is no object"},
	} {
		got, err := Parse([]byte("[" + good + "," + c.text + "]"))
		if err != nil || len(got.Mistakes) != 1 || len(got.Entries) != 1 {
			t.Errorf("%s: %v, %v", c.text, got, err)
			continue
		}
		m := got.Mistakes[0].Error()
		if !strings.HasPrefix(m, "pull secret 2") || !strings.Contains(m, c.want) || strings.Contains(m, hidden) || strings.Contains(m, "12345678") || strings.Contains(m, "\n") {
			t.Errorf("%s: %s", c.text, m)
		}
	}
	for _, text := range []string{"", "x", `"` + hidden + `"`, `[{"dockerPassword":"` + hidden + `"`, strings.Repeat(" ", MaxFile+1)} {
		if _, err := Parse([]byte(text)); err == nil || strings.Contains(err.Error(), hidden) {
			t.Errorf("%.30q: %v", text, err)
		}
	}
}

// TestKeeps: nothing is taken away for a slip of the pen.
func TestKeeps(t *testing.T) {
	c, err := Parse([]byte(`[{"name":"a","dockerServer":"r"},` + entry(`,"name":"b"`) + `]`))
	if err != nil || !c.Keeps("a") || c.Keeps("b") || c.Keeps("c") {
		t.Error(c, err)
	}
	if c, err = Parse([]byte(`[{"name":"A_"}]`)); err != nil || !c.Keeps("c") {
		t.Error(c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[" + entry(`,"name":"a","namespaces":"a,b","serviceAccounts":"*"`) + "]"))
	f.Add([]byte(entry(`,"dockerServer":"https://index.docker.io/v1/"`)))
	f.Add([]byte(`[{"dockerUsername":"u","dockerPassword":"p","dockerServer":"[::1]:5000"}]`))
	f.Add([]byte(`[{"dockerUsername":null},1,[],{}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		for _, m := range c.Mistakes {
			if strings.ContainsAny(m.Error(), "\r\n") {
				t.Errorf("not one line: %q", m)
			}
		}
		for _, e := range c.Entries {
			if e.Name == "" || len(e.Namespaces) == 0 || len(e.ServiceAccounts) == 0 || slices.Contains(e.Namespaces, "") {
				t.Errorf("%+v", e)
			}
			var content struct {
				Auths map[string]struct{ Username, Password string }
			}
			if err := json.Unmarshal(e.DockerConfig(), &content); err != nil {
				t.Error(err)
			}
			if a := content.Auths[e.server]; a.Username != e.username || a.Password != e.password {
				t.Errorf("%q is not what was written", content)
			}
		}
	})
}
