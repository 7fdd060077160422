package dialect

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/api/v1alpha1"
)

// digest is the one in all samples.
const digest = "sha256:8a9e9863dbb6e10edb5adfe917c00da84e1700fa76e7ed02476aa6e6fb8ee0d8"

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

// sample is a recorded notification, after the public documentation of its sender:
//
//	distribution  CNCF Distribution, "Work with notifications"
//	harbor        Harbor, "Configure Webhook Notifications", formats Default and CloudEvents
//	tcr           Tencent Cloud TCR Enterprise, 触发器 (Webhook), "Webhook 请求格式参考"
//	quay          Quay, "Repository Notifications": the list of tags, and the older object
//	dockerhub     Docker Hub, "Webhooks"
//	github        GitHub, "Webhook events and payloads": package, registry_package, ping
//	acr           Azure Container Registry, "Webhook reference"; Event Grid with CloudEvents
//	ecr           Amazon ECR, "Amazon ECR events and EventBridge"
//	cloudevents   CloudEvents 1.0.2, JSON format and HTTP binding; CDEvents "artifact published"
type sample struct {
	file    string
	header  http.Header
	dialect Name
	pushes  []Event
	ignored int
	ping    bool
}

var (
	plain   = headers("Content-Type", "application/json")
	cloud   = headers("Content-Type", "application/cloudevents+json; charset=utf-8")
	ceID    = "/projects/1/webhook/policies/3/4b2f89a6-548d-4c12-9993-a1f5790b97d2"
	ceTime  = at("2023-03-06T06:08:43Z")
	gitPush = Event{ID: "guid-1", Repository: "octo-org/hello-world", Tag: "v1.0.1", Digest: digest}
)

func github(event string) http.Header {
	return headers("Content-Type", "application/json", "X-GitHub-Event", event, "X-GitHub-Delivery", "guid-1")
}

var samples = []sample{
	{"distribution-push", headers("Content-Type", "application/vnd.docker.distribution.events.v2+json"), Distribution, []Event{
		{"320678d8-ca14-430f-8bb6-4ca139cd83f8", at("2016-09-26T16:42:55Z"), "library/hello-world", "latest", digest}}, 1, false},
	{"distribution-pull", headers("Content-Type", "application/vnd.docker.distribution.events.v1+json"), Distribution, nil, 1, false},
	{"distribution-digest", plain, Distribution, nil, 1, false},
	{"harbor-push", plain, Harbor, []Event{{"", at("2020-04-15T03:45:08Z"), "test-webhook/debian", "latest", digest}}, 0, false},
	{"harbor-pull", plain, Harbor, nil, 1, false},
	{"harbor-digest", plain, Harbor, nil, 1, false},
	{"harbor-scan", plain, Harbor, nil, 1, false},
	{"harbor-cloudevents-push", cloud, HarborCloudEvents, []Event{{ceID, ceTime, "library/busybox", "v2", digest}}, 0, false},
	{"harbor-cloudevents-pull", cloud, HarborCloudEvents, nil, 1, false},
	{"tcr-push", plain, TCR, []Event{{"", at("2020-05-10T10:30:05Z"), "public/nginx", "v1.10.0", digest}}, 0, false},
	{"tcr-delete", plain, TCR, nil, 1, false},
	{"tcr-chart", plain, TCR, nil, 1, false},
	{"quay-push", plain, Quay, []Event{{Repository: "mynamespace/repository", Tag: "latest"}, {Repository: "mynamespace/repository", Tag: "1.0"}}, 0, false},
	{"quay-push-old", plain, Quay, []Event{{Repository: "mynamespace/repository", Tag: "latest"}}, 0, false},
	{"quay-build", plain, Quay, nil, 1, false},
	{"dockerhub-push", plain, DockerHub, []Event{{"", at("2014-12-03T00:22:41Z"), "svendowideit/testhook", "latest", ""}}, 0, false},
	{"github-package", github("package"), GitHub, []Event{gitPush}, 0, false},
	{"github-registry-package", github("registry_package"), GitHub, []Event{gitPush}, 0, false},
	{"github-untagged", github("package"), GitHub, nil, 1, false},
	{"github-npm", github("package"), GitHub, nil, 1, false},
	{"github-ping", github("ping"), GitHub, nil, 1, true},
	{"acr-push", plain, ACR, []Event{{"cb8c3971-9adc-488b-bdd8-43cbb4974ff5", at("2017-11-17T16:52:01.343145347Z"), "hello-world", "v1", digest}}, 0, false},
	{"acr-delete", plain, ACR, nil, 1, false},
	{"acr-chart", plain, ACR, nil, 1, false},
	{"acr-ping", plain, ACR, nil, 1, true},
	{"ecr-push", plain, ECR, []Event{{"13cde686-328b-6117-af20-0e5566167482", at("2019-11-16T01:54:34Z"), "my-repository-name", "latest", digest}}, 0, false},
	{"ecr-delete", plain, ECR, nil, 1, false},
	{"ecr-failure", plain, ECR, nil, 1, false},
	{"ecr-scan", plain, ECR, nil, 1, false},
	{"cloudevents-acr", cloud, CloudEvents, []Event{{ceID, ceTime, "aci-helloworld", "v1", digest}}, 0, false},
	{"cloudevents-cdevents", cloud, CloudEvents, []Event{{ceID, ceTime, "team/myapp", "1.2", digest}}, 0, false},
	{"cloudevents-generic", plain, CloudEvents, []Event{{ceID, ceTime, "team/app", "v3", digest}}, 0, false},
	{"cloudevents-other", cloud, CloudEvents, nil, 1, false},
	{"cloudevents-batch", headers("Content-Type", "application/cloudevents-batch+json"), CloudEvents, []Event{
		{ceID, ceTime, "team/app", "v3", ""}, {ceID, ceTime, "team/app", "v4", ""}}, 0, false},
	{"cloudevents-binary", headers("Content-Type", "application/json", "ce-specversion", "1.0", "ce-id", "7", "ce-source", "/s", "ce-type", "x.pushed"),
		CloudEvents, []Event{{"/s/7", time.Time{}, "team/app", "v5", ""}}, 0, false},
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSamples reads every recorded notification.
func TestSamples(t *testing.T) {
	tested := map[string]bool{}
	dialects := map[Name]bool{}
	for _, s := range samples {
		t.Run(s.file, func(t *testing.T) {
			want := Message{Dialect: s.dialect, Pushes: s.pushes, Ignored: s.ignored, Ping: s.ping}
			got, err := Parse(s.header, read(t, s.file))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
		tested[s.file+".json"] = true
		if len(s.pushes) > 0 {
			dialects[s.dialect] = true
		}
	}
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !tested[f.Name()] && !f.IsDir() {
			t.Errorf("%s is not tested", f.Name())
		}
	}
	for _, n := range Names() {
		if !dialects[n] {
			t.Errorf("there is no push in dialect %s", n)
		}
	}
}

// TestUnknown proves that what is nobody's is refused.
func TestUnknown(t *testing.T) {
	for _, body := range []string{
		``, `garbage`, `null`, `7`, `"text"`, `[]`, `{}`, `{"type":"x"}`, `[{"events":[]}]`, `{"repository":"team/app","tag":"v1"}`,
		`{"detail-type":"x","detail":{},"source":"aws.s3"}`, "{\"a\":\x00}", strings.Repeat("[", 100_000),
	} {
		m, err := Parse(plain, []byte(body))
		if u := (*UnknownError)(nil); !errors.As(err, &u) {
			t.Errorf("%.40q: %+v, %v", body, m, err)
		}
	}
}

// TestMalformed proves that a wrong field is named.
func TestMalformed(t *testing.T) {
	replace := func(file, old, now string) []byte {
		b := read(t, file)
		if !bytes.Contains(b, []byte(old)) {
			t.Fatalf("%s has no %s", file, old)
		}
		return bytes.ReplaceAll(b, []byte(old), []byte(now))
	}
	many := `{"events":[` + strings.TrimSuffix(strings.Repeat(`{"action":"pull"},`, maxEvents+1), ",") + `]}`
	for _, c := range []struct {
		header  http.Header
		body    []byte
		dialect Name
		field   string
	}{
		{plain, replace("harbor-push", `"tag": "latest"`, `"tag": "a b"`), Harbor, "event_data.resources[0].tag"},
		{plain, replace("harbor-push", `"tag": "latest"`, `"tag": 7`), Harbor, "event_data.resources.tag"},
		{plain, replace("harbor-push", `test-webhook/debian"`, `../../etc"`), Harbor, "event_data.repository.repo_full_name"},
		{plain, replace("tcr-push", digest, "sha256:beef"), TCR, "event_data.resources[0].digest"},
		{plain, replace("distribution-push", "library/hello-world", "Library/Hello"), Distribution, "events[1].target.repository"},
		{plain, replace("distribution-push", `"action": "push"`, `"action": ""`), Distribution, "events[0].action"},
		{plain, []byte(many), Distribution, "events"},
		{plain, []byte(`{"events":{}}`), Distribution, "events"},
		{plain, replace("quay-push", `"1.0"`, `"-"`), Quay, "updated_tags[1]"},
		{plain, []byte(`{"repository":"a/b","namespace":"a","docker_url":"x","updated_tags":7}`), Quay, "updated_tags"},
		{plain, replace("dockerhub-push", "svendowideit/testhook\"", "<script>\""), DockerHub, "repository.repo_name"},
		{github("package"), []byte(`{}`), GitHub, "package"},
		{github("package"), replace("github-package", `"v1.0.1"`, `"v1 .0"`), GitHub, "package.package_version.container_metadata.tag.name"},
		{plain, replace("acr-push", `"hello-world"`, `"hello world"`), ACR, "target.repository"},
		{plain, replace("ecr-push", `"latest"`, `"la/test"`), ECR, "detail.image-tag"},
		{cloud, []byte(`{"specversion":"1.0","type":"x","source":"y"}`), CloudEvents, "id"},
		{cloud, []byte(`{"specversion":"0.3","type":"x","source":"y","id":"1"}`), CloudEvents, "specversion"},
		{cloud, []byte(`[]`), CloudEvents, ""},
		{cloud, replace("cloudevents-generic", `"team/app"`, `"team//app"`), CloudEvents, "data.repository"},
		{cloud, replace("cloudevents-cdevents", `sha256%3A`, `sha256%3`), CloudEvents, "data.subject.id"},
	} {
		m, err := Parse(c.header, c.body)
		var e *MalformedError
		if !errors.As(err, &e) || e.Dialect != c.dialect || e.Field != c.field {
			t.Errorf("%s %s: %+v, %v", c.dialect, c.field, m, err)
			continue
		}
		if len(err.Error()) > 300 {
			t.Errorf("the error has %d characters", len(err.Error()))
		}
	}
}

// TestTidy proves that a tag is named once, with what was said last.
func TestTidy(t *testing.T) {
	body := fmt.Sprintf(`{"events":[
		{"id":"1","action":"push","target":{"mediaType":"x.manifest","repository":"a/b","tag":"t","digest":%q}},
		{"id":"2","action":"push","target":{"mediaType":"x.manifest","repository":"a/c","tag":"t"}},
		{"id":"3","action":"push","target":{"mediaType":"x.manifest","repository":"a/b","tag":"t"}}]}`, digest)
	m, err := Parse(plain, []byte(body))
	want := []Event{{ID: "3", Repository: "a/b", Tag: "t"}, {ID: "2", Repository: "a/c", Tag: "t"}}
	if err != nil || !slices.Equal(m.Pushes, want) {
		t.Errorf("%+v, %v", m, err)
	}
}

// fuzzHeaders are the headers that choose a dialect.
var fuzzHeaders = []http.Header{
	plain, cloud, headers("Content-Type", "application/cloudevents-batch+json"), github("package"), github("registry_package"), github("ping"),
	headers("Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "s", "Ce-Type", "dev.cdevents.artifact.published.1"), {},
}

// FuzzParse proves that what comes out is fit to be asked for, whatever went in.
func FuzzParse(f *testing.F) {
	for i, s := range samples {
		f.Add(i%len(fuzzHeaders), read(f, s.file))
		for j, h := range fuzzHeaders {
			if reflect.DeepEqual(h, s.header) {
				f.Add(j, read(f, s.file))
			}
		}
	}
	f.Fuzz(func(t *testing.T, header int, body []byte) {
		m, err := Parse(fuzzHeaders[uint(header)%uint(len(fuzzHeaders))], body)
		var unknown *UnknownError
		var malformed *MalformedError
		if err != nil && !errors.As(err, &unknown) && !errors.As(err, &malformed) {
			t.Fatalf("%T", err)
		}
		if err == nil && !slices.Contains(Names(), m.Dialect) || len(m.Pushes) > maxEvents {
			t.Fatalf("%+v", m)
		}
		for _, p := range m.Pushes {
			if !v1alpha1.ValidRepository(p.Repository) || !v1alpha1.ValidTag(p.Tag) || p.Digest != "" && !v1alpha1.ValidDigest(p.Digest) {
				t.Fatalf("%+v", p)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, s := range samples {
		if len(s.pushes) == 0 {
			continue
		}
		body := read(b, s.file)
		b.Run(s.file, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := Parse(s.header, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
