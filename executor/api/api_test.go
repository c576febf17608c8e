package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDecodeTaskRequest(t *testing.T) {
	for _, c := range []struct {
		name, body, field, detail string
	}{
		{"the least", `{"shard":3,"spec":{"process":{"command":["x"]}}}`, "", ""},
		{"everything", `{"shard":0,"spec":{"process":{"command":["x"],"args":[""],"env":[{"name":"B"}],"workingDir":"/"},"timeoutSeconds":1,"graceSeconds":0}}`, "", ""},
		{"an empty body", ``, "", "empty"},
		{"not JSON", `{"shard"`, "", "not JSON"},
		{"two values", `{"shard":3,"spec":{"process":{"command":["x"]}}} {}`, "", "more than one"},
		{"an unknown field", `{"shrad":"x"}`, "shrad", "no such field"},
		{"a wrong type", `{"spec":{"timeoutSeconds":"1"}}`, "spec.timeoutSeconds", "string"},
		{"a list", `[]`, "", "array"},
		{"a negative shard", `{"shard":-1,"spec":{"process":{"command":["x"]}}}`, "shard", "-1"},
		{"no command", `{"shard":3,"spec":{"process":{"args":["x"]}}}`, "spec.process.command", "empty"},
		{"an empty command", `{"shard":3,"spec":{"process":{"command":[]}}}`, "spec.process.command", "empty"},
		{"an empty name", `{"shard":3,"spec":{"process":{"command":[""]}}}`, "spec.process.command[0]", "empty"},
		{"NUL in the command", `{"shard":3,"spec":{"process":{"command":["x\u0000"]}}}`, "spec.process.command[0]", "NUL"},
		{"NUL in an argument", `{"shard":3,"spec":{"process":{"command":["x"],"args":["","\u0000"]}}}`, "spec.process.args[1]", "NUL"},
		{"NUL in the directory", `{"shard":3,"spec":{"process":{"command":["x"],"workingDir":"\u0000"}}}`, "spec.process.workingDir", "NUL"},
		{"a variable without name", `{"shard":3,"spec":{"process":{"command":["x"],"env":[{"value":"1"}]}}}`, "spec.process.env[0].name", `""`},
		{"a variable's name with =", `{"spec":{"process":{"command":["x"],"env":[{"name":"a=b"}]}}}`, "spec.process.env[0].name", "a=b"},
		{"NUL in a variable", `{"shard":3,"spec":{"process":{"command":["x"],"env":[{"name":"a","value":"\u0000"}]}}}`, "spec.process.env[0].value", "NUL"},
		{"a negative timeout", `{"shard":3,"spec":{"process":{"command":["x"]},"timeoutSeconds":-1}}`, "spec.timeoutSeconds", "-1"},
		{"an endless grace", `{"shard":3,"spec":{"process":{"command":["x"]},"graceSeconds":99999}}`, "spec.graceSeconds", "99999"},
		{"files", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a/..b","mode":511,"content":"eA=="},{"path":"/a/b","mode":0}]}}`, "", ""},
		{"a relative file", `{"spec":{"process":{"command":["x"]},"files":[{"path":"a"}]}}`, "spec.files[0].path", `"a" is not the absolute path`},
		{"a file above", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a/../b"}]}}`, "spec.files[0].path", "absolute path"},
		{"a directory", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a/"}]}}`, "spec.files[0].path", "absolute path"},
		{"the root", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/"}]}}`, "spec.files[0].path", "absolute path"},
		{"NUL in a file's path", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a\u0000"}]}}`, "spec.files[0].path", "absolute path"},
		{"a file twice", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a"},{"path":"/a"}]}}`, "spec.files[1].path", "twice"},
		{"a setuid file", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a","mode":2541}]}}`, "spec.files[0].mode", "04755"},
		{"5,000 files", `{"spec":{"process":{"command":["x"]},"files":[` + strings.Repeat(`{"path":"/a"},`, 4999) + `{"path":"/a"}]}}`, "spec.files", "5000 files"},
		{"a MiB and a byte", `{"spec":{"process":{"command":["x"]},"files":[{"path":"/a","content":"` + strings.Repeat("AAAA", MaxFilesBytes/3+1) + `"}]}}`, "spec.files", "more than 1048576"},
		{"a number that overflows", `{"shard":3,"spec":{"timeoutSeconds":1e99}}`, "spec.timeoutSeconds", "number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := DecodeTaskRequest([]byte(c.body))
			if c.detail == "" {
				require.NoError(t, err)
				return
			}
			var wrong *FieldError
			require.ErrorAs(t, err, &wrong)
			assert.Equal(t, c.field, wrong.Field)
			assert.Contains(t, wrong.Detail, c.detail)
		})
	}
}

func TestSpecEquality(t *testing.T) {
	grace := int64(DefaultGraceSeconds)
	a := TaskSpec{Process: Process{Command: []string{"x"}}}
	b := TaskSpec{Process: Process{Command: []string{"x"}, Args: []string{}, Env: []EnvVar{}}, GraceSeconds: &grace}
	assert.Equal(t, a.Digest(), b.Digest())
	b.Process.Args = []string{""}
	assert.NotEqual(t, a.Digest(), b.Digest())
	assert.Equal(t, 10*time.Second, a.Grace())
}

func TestCursor(t *testing.T) {
	want := Cursor{BootID: "abc", Version: 7}
	got, err := ParseCursor(want.String())
	require.NoError(t, err)
	assert.Equal(t, want, got)
	got, err = ParseCursor("")
	require.NoError(t, err)
	assert.Zero(t, got)
	for _, bad := range []string{"7", ":7", "abc:", "abc:-1", "abc:x", "abc"} {
		_, err := ParseCursor(bad)
		assert.Error(t, err, bad)
	}
}

func TestTaskIDs(t *testing.T) {
	for _, good := range []string{"a", "0", "A-b_c.d", strings.Repeat("x", 128)} {
		require.NoError(t, ValidateTaskID(good))
	}
	for _, bad := range []string{"", ".", "..", "-a", "a/b", "a b", "é", strings.Repeat("x", 129), "a\n"} {
		assert.Error(t, ValidateTaskID(bad), bad)
	}
}

func FuzzDecodeTaskRequest(f *testing.F) {
	f.Add([]byte(`{"shard":0,"spec":{"process":{"command":["x"],"args":["y"],"env":[{"name":"B"}],"workingDir":"/"},"timeoutSeconds":1,"graceSeconds":0}}`))
	f.Add([]byte(`{"spec":{"process":{"command":[]}}}`))
	f.Add([]byte(`{"a":1}`))
	f.Add([]byte(`{"spec":{"timeoutSeconds":1` + strings.Repeat("0", 2000) + `}}`))
	f.Add([]byte(``))
	f.Add([]byte("\xff\x00{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		request, err := DecodeTaskRequest(body)
		if err != nil {
			var wrong *FieldError
			require.ErrorAs(t, err, &wrong, "every refusal is a FieldError")
			require.LessOrEqual(t, len(err.Error()), 1000, "a refusal does not repeat the request")
			return
		}
		require.NotEmpty(t, request.Spec.Process.Command)
		again, err := json.Marshal(request)
		require.NoError(t, err)
		decoded, err := DecodeTaskRequest(again)
		require.NoError(t, err)
		require.Equal(t, request.Spec.Digest(), decoded.Spec.Digest())
	})
}
