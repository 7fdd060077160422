package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestEachElement: samples come one by one; of an answer that breaks off those before
// the break.
func TestEachElement(t *testing.T) {
	for text, want := range map[string]string{
		`[]`: "[] ok", "[\n{\"a\":1},\n{\"b\":[2]}\n]\n": `[{"a":1} {"b":[2]}] ok`,
		`[{"a":1},{"b"`: `[{"a":1}] error`, ``: "[] error", `{"a":1}`: "[] error", `404 page not found`: "[] error",
	} {
		got := []string{}
		err := eachElement(strings.NewReader(text), func(raw json.RawMessage) error {
			got = append(got, string(raw))
			return nil
		})
		end := "ok"
		if err != nil {
			end = "error"
		}
		if s := fmt.Sprintf("%v %s", got, end); s != want {
			t.Errorf("%q: %s, want %s", text, s, want)
		}
	}
	enough := errors.New("enough")
	if err := eachElement(strings.NewReader(`[1,2]`), func(json.RawMessage) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}
