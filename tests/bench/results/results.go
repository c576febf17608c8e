// Package results holds what the benchmarks have measured. Each run adds its tables to a JSON
// file (Run), and the documents are made of these files. A table says itself on what it was
// measured and by which command, as the tables of one file may come from several runs.
package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
)

// Document is all that a file holds.
type Document struct {
	Tables []Table `json:"tables"`
}

// Table is what one part of a benchmark has measured.
type Table struct {
	// ID names the table for the documents. A table replaces an earlier one with its ID.
	ID string `json:"id"`
	// Title says in a few words what was measured, Note in sentences how to read it.
	Title string `json:"title"`
	Note  string `json:"note,omitempty"`
	// Command makes this table. A Run sets it, and the Environment.
	Command     string      `json:"command,omitempty"`
	Environment Environment `json:"environment"`
	// Incomplete says what went wrong before all of it was measured.
	Incomplete string `json:"incomplete,omitempty"`
	// Keys are the heads of the first columns: words that tell the rows apart. Columns are those
	// of the values.
	Keys    []string `json:"keys"`
	Columns []Column `json:"columns"`
	Rows    []Row    `json:"rows"`
}

// Column describes the values below it.
type Column struct {
	Name string `json:"name"`
	// Unit is "ms", for example; empty for ratios and counts.
	Unit string `json:"unit,omitempty"`
	// Digits are shown after the point.
	Digits int `json:"digits,omitempty"`
}

// Row has a key for each of the table's Keys, and a value for each of its Columns.
type Row struct {
	Keys   []string `json:"keys"`
	Values Values   `json:"values"`
}

// NotMeasured stands where a row has no value. It equals nothing, not even itself: see Measured.
var NotMeasured = math.NaN()

// Measured says that there is a value.
func Measured(v float64) bool { return !math.IsNaN(v) }

// Values are numbers, with NotMeasured where there is none: null in JSON.
type Values []float64

// MarshalJSON implements json.Marshaler.
func (v Values) MarshalJSON() ([]byte, error) {
	list := make([]*float64, len(v))
	for i := range v {
		if Measured(v[i]) {
			list[i] = &v[i]
		}
	}
	return json.Marshal(list)
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *Values) UnmarshalJSON(data []byte) error {
	var list []*float64
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	*v = make(Values, len(list))
	for i, value := range list {
		(*v)[i] = NotMeasured
		if value != nil {
			(*v)[i] = *value
		}
	}
	return nil
}

// Add adds a row.
func (t *Table) Add(keys []string, values ...float64) {
	t.Rows = append(t.Rows, Row{Keys: keys, Values: values})
}

// Column returns the values of a column, from the first row to the last.
func (t *Table) Column(name string) ([]float64, error) {
	at := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
	if at < 0 {
		return nil, fmt.Errorf("table %s has no column %q", t.ID, name)
	}
	values := make([]float64, len(t.Rows))
	for i := range t.Rows {
		values[i] = t.Rows[i].Values[at]
	}
	return values, nil
}

// validate refuses a table whose rows are not as its heads say.
func (t *Table) validate() error {
	if t.ID == "" {
		return fmt.Errorf("table %q has no ID", t.Title)
	}
	for _, row := range t.Rows {
		if len(row.Keys) != len(t.Keys) || len(row.Values) != len(t.Columns) {
			return fmt.Errorf("table %s: row %q has %d keys and %d values instead of %d and %d",
				t.ID, row.Keys, len(row.Keys), len(row.Values), len(t.Keys), len(t.Columns))
		}
	}
	return nil
}

// Table returns that table, nil where there is none.
func (d *Document) Table(id string) *Table {
	if at := slices.IndexFunc(d.Tables, func(t Table) bool { return t.ID == id }); at >= 0 {
		return &d.Tables[at]
	}
	return nil
}

// Merge adds the tables, each in the place of the one that had its ID.
func (d *Document) Merge(tables ...Table) {
	for _, table := range tables {
		if earlier := d.Table(table.ID); earlier != nil {
			*earlier = table
		} else {
			d.Tables = append(d.Tables, table)
		}
	}
}

// Read reads the documents of the files; where two have a table with the same ID, the later one
// counts.
func Read(files ...string) (*Document, error) {
	all := &Document{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading what was measured: %w", err)
		}
		var document Document
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&document); err != nil {
			return nil, fmt.Errorf("reading what was measured: %s: %w", file, err)
		}
		for i := range document.Tables {
			if err := document.Tables[i].validate(); err != nil {
				return nil, fmt.Errorf("reading what was measured: %s: %w", file, err)
			}
		}
		all.Merge(document.Tables...)
	}
	return all, nil
}

// Write writes the document to a file.
func (d *Document) Write(file string) error {
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("writing what was measured: %w", err)
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// Run is one run of a benchmark. It takes its tables as they are measured.
type Run struct {
	// Command is that of the run, Environment what it runs on.
	Command     string
	Environment Environment
	// Out is where the tables are printed.
	Out io.Writer
	// File is the JSON file that they go to, if it is not empty.
	File string
}

// Add prints a table and puts it into the file, where those of earlier runs stay.
func (r *Run) Add(table Table) error {
	table.Environment = r.Environment
	if table.Command == "" {
		table.Command = r.Command
	}
	if err := table.validate(); err != nil {
		return err
	}
	if err := table.WriteText(r.Out); err != nil || r.File == "" {
		return err
	}
	document, err := Read(r.File)
	if errors.Is(err, fs.ErrNotExist) {
		document, err = &Document{}, nil
	}
	if err != nil {
		return err
	}
	document.Merge(table)
	return document.Write(r.File)
}
