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
