package tasks_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
)

func TestFilesAreThereWhenTheTaskStarts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dir := f.sandbox.Path("files")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "old"), []byte("what was there"), 0o600))
	big := bytes.Repeat([]byte{0xff, 0}, api.MaxFilesBytes/4)
	request := f.request("sh", "-c", "cat "+dir+"/new/deep/text; test -x "+dir+"/old && ! test -s "+dir+"/empty && ls -A "+dir)
	request.Spec.Files = []api.File{
		{Path: filepath.Join(dir, "new/deep/text"), Mode: 0o444, Content: []byte("text\n")},
		{Path: filepath.Join(dir, "old"), Mode: 0o755, Content: big},
		{Path: filepath.Join(dir, "empty"), Mode: 0},
	}
	task := f.run(request)
	require.Equal(t, api.Succeeded, task.State, task.Message)
	require.Equal(t, "shard 7 stdout: text\nshard 7 stdout: empty\nshard 7 stdout: new\nshard 7 stdout: old\n", f.stdout.String(), "nothing else is left there")
	for path, mode := range map[string]os.FileMode{"new": 0o755 | os.ModeDir, "new/deep": 0o755 | os.ModeDir, "new/deep/text": 0o444, "old": 0o755, "empty": 0} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode(), path)
	}
	got, err := os.ReadFile(filepath.Join(dir, "old"))
	require.NoError(t, err)
	assert.Equal(t, big, got)
	f.reset()
}

func TestAFileThatCannotBeWrittenFailsTheTask(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"plain/below-a-file", "folder", "/proc/no-file-can-be-made-here"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			require.NoError(t, os.WriteFile(f.sandbox.Path("plain"), []byte("stays"), 0o644))
			require.NoError(t, os.MkdirAll(f.sandbox.Path("folder"), 0o755))
			at := path
			if !filepath.IsAbs(path) {
				at = f.sandbox.Path(path)
			}
			request := f.request("sh", "-c", "echo ran")
			request.Spec.Files = []api.File{{Path: at, Content: []byte("hush")}}
			task := f.run(request)
			assert.Equal(t, api.Failed, task.State)
			assert.Equal(t, api.ReasonFileUnwritable, task.Reason)
			assert.Equal(t, int32(128), *task.ExitCode)
			assert.Contains(t, task.Message, path)
			assert.NotContains(t, task.Message, "hush")
			assert.Empty(t, f.stdout.String())
			left, err := filepath.Glob(f.sandbox.Path(".opensandbox-*"))
			require.NoError(t, err)
			assert.Empty(t, left)
			f.reset()
			assert.Equal(t, api.Succeeded, f.run(f.request("true")).State, "the launcher serves on")
		})
	}
}

// A task of the same sandbox may have put there what it likes.
func TestAFileTakesThePlaceOfWhatIsThereAndFollowsNoLink(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]string{
		"a link to a file":        "ln -s $PWD/victim at/file",
		"a link to nothing":       "ln -s $PWD/nowhere at/file",
		"a link to a folder":      "ln -s $PWD/folder at/file",
		"a pipe":                  "mkfifo at/file",
		"another name of a file":  "ln victim at/file",
		"a file nobody may write": "touch at/file; chmod 0 at/file",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			require.Equal(t, api.Succeeded, f.run(f.request("sh", "-ec", "mkdir at folder; echo mine > victim; "+put)).State)
			f.reset()
			request := f.request("sh", "-ec", `test ! -L at/file; test "$(cat at/file)" = text; test "$(cat victim)" = mine; test ! -e nowhere; test -z "$(ls -A folder)"; test "$(ls -A at)" = file`)
			request.Spec.Files = []api.File{{Path: f.sandbox.Path("at/file"), Mode: 0o644, Content: []byte("text")}}
			task := f.run(request)
			assert.Equal(t, api.Succeeded, task.State, "%+v %s", task, f.stderr)
		})
	}
}
