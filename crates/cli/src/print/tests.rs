//! Each format over the same awkward answers: NULL, wide characters, quotes, line ends, lists, vectors, nothing.

use std::sync::Arc;

use engine::arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int64Array, ListArray,
    ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray, TimestampMicrosecondArray, UInt8Array,
};
use engine::arrow::datatypes::{DataType, Field, Float32Type, Int64Type, Schema, SchemaRef};

use super::*;

fn vectors(rows: &[Vec<f32>]) -> ArrayRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let length = i32::try_from(rows[0].len()).unwrap();
    let values = Float32Array::from_iter_values(rows.iter().flatten().copied());
    Arc::new(FixedSizeListArray::new(item, length, Arc::new(values), None))
}

fn answer(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// Two rows: plain ones, and ones that need care.
fn awkward() -> RecordBatch {
    answer(vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), None]))),
        ("text", Arc::new(StringArray::from(vec![Some("日本"), Some("a \"b\", c|d")]))),
        ("x", Arc::new(Float64Array::from(vec![Some(0.1), Some(-12.5)]))),
    ])
}

fn print_with(options: PrintOptions, schema: &SchemaRef, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    let mut printer = printer(schema, options).unwrap();
    for batch in batches {
        printer.batch(batch, &mut out).unwrap();
    }
    printer.finish(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn print(format: Format, batch: &RecordBatch) -> String {
    let options = PrintOptions { format, column_width_max: None, color: false };
    print_with(options, &batch.schema(), std::slice::from_ref(batch))
}

/// `expected` without the line end before its first line.
fn check(format: Format, batch: &RecordBatch, expected: &str) {
    assert_eq!(print(format, batch), expected.trim_start_matches('\n'), "{format:?}");
}

#[test]
fn every_text_format_prints_the_same_rows() {
    let batch = awkward();
    check(
        Format::Table,
        &batch,
        "
┌──────┬────────────┬───────┐
│   id │ text       │     x │
├──────┼────────────┼───────┤
│    1 │ 日本       │   0.1 │
│ NULL │ a \"b\", c|d │ -12.5 │
└──────┴────────────┴───────┘
",
    );
    check(
        Format::Markdown,
        &batch,
        "
|   id | text        |     x |
| ---: | ----------- | ----: |
|    1 | 日本        |   0.1 |
| NULL | a \"b\", c\\|d | -12.5 |
",
    );
    check(Format::Csv, &batch, "id,text,x\n1,日本,0.1\n,\"a \"\"b\"\", c|d\",-12.5\n");
    check(Format::Tsv, &batch, "id\ttext\tx\n1\t日本\t0.1\n\t\"a \"\"b\"\", c|d\"\t-12.5\n");
    check(
        Format::Json,
        &batch,
        "
[{\"id\":1,\"text\":\"日本\",\"x\":0.1},
 {\"id\":null,\"text\":\"a \\\"b\\\", c|d\",\"x\":-12.5}]
",
    );
    check(
        Format::Jsonl,
        &batch,
        "
{\"id\":1,\"text\":\"日本\",\"x\":0.1}
{\"id\":null,\"text\":\"a \\\"b\\\", c|d\",\"x\":-12.5}
",
    );
    check(
        Format::Vertical,
        &batch,
        "
─[ row 1 ]──────────────────────────────
id   │ 1
text │ 日本
x    │ 0.1
─[ row 2 ]──────────────────────────────
id   │ NULL
text │ a \"b\", c|d
x    │ -12.5
",
    );
}

#[test]
fn an_empty_answer_still_has_its_columns() {
    let batch = awkward().slice(0, 0);
    check(
        Format::Table,
        &batch,
        "
┌────┬──────┬───┐
│ id │ text │ x │
├────┼──────┼───┤
└────┴──────┴───┘
",
    );
    check(Format::Markdown, &batch, "|  id | text |   x |\n| --: | ---- | --: |\n");
    check(Format::Csv, &batch, "id,text,x\n");
    check(Format::Json, &batch, "[]\n");
    check(Format::Jsonl, &batch, "");
    check(Format::Vertical, &batch, "");
}

#[test]
fn an_arrow_stream_reads_back_as_it_was() {
    for batch in [awkward(), awkward().slice(0, 0)] {
        let mut out = Vec::new();
        let options = PrintOptions { format: Format::Arrow, column_width_max: None, color: false };
        let mut printer = printer(&batch.schema(), options).unwrap();
        printer.batch(&batch, &mut out).unwrap();
        printer.finish(&mut out).unwrap();
        let read = engine::arrow::ipc::reader::StreamReader::try_new(out.as_slice(), None).unwrap();
        assert_eq!(read.schema(), batch.schema());
        let batches: Vec<RecordBatch> = read.map(Result::unwrap).collect();
        assert_eq!(batches, [batch]);
    }
}

#[test]
fn long_vectors_are_shortened_for_people_alone() {
    let long: Vec<f32> = (0..384).map(|i| [0.012_345, -0.5, 1e-7, 12.0][i % 4]).collect();
    let batch = answer(vec![("emb", vectors(&[long]))]);
    check(
        Format::Table,
        &batch,
        "
┌─────────────────────────────┐
│ emb                         │
├─────────────────────────────┤
│ [0.0123, -0.5, 1e-7, … 384] │
└─────────────────────────────┘
",
    );
    assert!(print(Format::Vertical, &batch).contains("emb │ [0.0123, -0.5, 1e-7, … 384]\n"));
    let csv = print(Format::Csv, &batch);
    assert!(csv.starts_with("emb\n\"[0.012345, -0.5, 1e-7, 12.0, 0.012345,"), "{csv}");
    assert_eq!(csv.matches("-0.5").count(), 96);
    assert_eq!(print(Format::Json, &batch).matches("0.012345").count(), 96);
}

#[test]
fn short_vectors_are_shown_whole_and_exact() {
    let batch = answer(vec![("v", vectors(&[vec![0.1, 0.123_456_79, 3.0]]))]);
    assert!(print(Format::Table, &batch).contains("│ [0.1, 0.12345679, 3.0] │"));
}

#[test]
fn slices_of_lists_print_their_own_rows() {
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
        Some((0..9).map(Some).collect()),
    ]);
    let batch = answer(vec![("l", Arc::new(lists)), ("v", vectors(&[vec![1.0], vec![2.0], vec![3.0], vec![4.0]]))]);
    check(Format::Csv, &batch, "l,v\n\"[1, null]\",[1.0]\n,[2.0]\n[],[3.0]\n\"[0, 1, 2, 3, 4, 5, 6, 7, 8]\",[4.0]\n");
    check(Format::Csv, &batch.slice(2, 2), "l,v\n[],[3.0]\n\"[0, 1, 2, 3, 4, 5, 6, 7, 8]\",[4.0]\n");
    assert!(print(Format::Table, &batch.slice(3, 1)).contains("[0, 1, 2, … 9]"));
}

#[test]
fn nested_values_are_json_for_programs() {
    let mut texts = ListBuilder::new(StringBuilder::new());
    texts.append_value([Some("x"), None, Some("y, z")]);
    let person = StructArray::from(vec![
        (Arc::new(Field::new("name", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["a \"b\""])) as ArrayRef),
        (Arc::new(Field::new("ok", DataType::Boolean, true)), Arc::new(BooleanArray::from(vec![None])) as ArrayRef),
    ]);
    let batch = answer(vec![("t", Arc::new(texts.finish()) as ArrayRef), ("s", Arc::new(person))]);
    check(Format::Jsonl, &batch, "{\"t\":[\"x\",null,\"y, z\"],\"s\":{\"name\":\"a \\\"b\\\"\",\"ok\":null}}\n");
    let csv = print(Format::Csv, &batch);
    assert_eq!(
        csv,
        "t,s\n\"[\"\"x\"\", null, \"\"y, z\"\"]\",\"{\"\"name\"\": \"\"a \\\"\"b\\\"\"\"\", \"\"ok\"\": null}\"\n"
    );
    assert!(print(Format::Table, &batch).contains("│ [x, null, y, z] │ {name: a \"b\", ok: null} │"));
}

#[test]
fn lists_of_vectors_are_shortened_too() {
    let inner = vectors(&vec![vec![0.5; 128]; 8]);
    let item = Arc::new(Field::new("item", inner.data_type().clone(), true));
    let offsets = engine::arrow::buffer::OffsetBuffer::from_lengths([8]);
    let batch = answer(vec![("m", Arc::new(ListArray::new(item, offsets, inner, None)))]);
    let vector = "[0.5, 0.5, 0.5, … 128]";
    assert!(print(Format::Table, &batch).contains(&format!("│ [{vector}, {vector}, {vector}, … 8] │")));
    assert_eq!(print(Format::Csv, &batch).matches("0.5").count(), 8 * 128);
}

/// Bit vectors of `bytes_per_row` bytes, marked as the engine marks them.
fn bit_vectors(bytes: &[u8], bytes_per_row: i32) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::UInt8, true));
    let column = FixedSizeListArray::new(item, bytes_per_row, Arc::new(UInt8Array::from(bytes.to_vec())), None);
    let mark = [("sagitta:type".to_owned(), "bit".to_owned())].into();
    let field = Field::new("b", column.data_type().clone(), true).with_metadata(mark);
    RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(column)]).unwrap()
}

#[test]
fn bit_vectors_are_their_bits() {
    let batch = bit_vectors(&[0b1011_0001, 3], 1);
    check(Format::Csv, &batch, "b\n10110001\n00000011\n");
    check(Format::Csv, &batch.slice(1, 1), "b\n00000011\n");
    check(Format::Jsonl, &batch, "{\"b\":\"10110001\"}\n{\"b\":\"00000011\"}\n");
    let long = bit_vectors(&[0xff; 128], 128);
    assert!(print(Format::Table, &long).contains("│ 11111111111111111111111111111111… 1024 │"));
    assert_eq!(print(Format::Csv, &long), format!("b\n{}\n", "1".repeat(1024)));
}

#[test]
fn half_floats_print_like_floats() {
    let values = [0.5f32, 2.0].map(half::f16::from_f32);
    let column = Float16Array::from_iter_values(values);
    let batch = answer(vec![("h", Arc::new(column))]);
    check(Format::Csv, &batch, "h\n0.5\n2\n");
    check(Format::Jsonl, &batch, "{\"h\":0.5}\n{\"h\":2.0}\n");
}

#[test]
fn numbers_that_json_does_not_know_are_null() {
    let batch = answer(vec![("x", Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY])))]);
    check(Format::Jsonl, &batch, "{\"x\":null}\n{\"x\":null}\n");
    check(Format::Csv, &batch, "x\nNaN\ninf\n");
}

#[test]
fn timestamps_look_like_sql() {
    let instant = 1_793_491_200_250_000;
    let batch = answer(vec![
        ("t", Arc::new(TimestampMicrosecondArray::from(vec![instant]))),
        ("z", Arc::new(TimestampMicrosecondArray::from(vec![instant]).with_timezone("UTC"))),
    ]);
    check(Format::Csv, &batch, "t,z\n2026-11-01 00:00:00.250,2026-11-01 00:00:00.250+00:00\n");
}

#[test]
fn empty_texts_and_null_differ_in_csv() {
    let batch = answer(vec![("a", Arc::new(StringArray::from(vec![Some(""), None, Some("x\r\ny")])))]);
    check(Format::Csv, &batch, "a\n\"\"\n\n\"x\r\ny\"\n");
}

#[test]
fn cells_of_several_lines_keep_their_lines() {
    let batch = answer(vec![
        ("plan", Arc::new(StringArray::from(vec![Some("Limit\n  Scan"), None]))),
        ("n", Arc::new(Int64Array::from(vec![7, 8]))),
    ]);
    check(
        Format::Table,
        &batch,
        "
┌────────┬───┐
│ plan   │ n │
├────────┼───┤
│ Limit  │ 7 │
│   Scan │   │
│ NULL   │ 8 │
└────────┴───┘
",
    );
    assert!(print(Format::Markdown, &batch).contains("| Limit<br>  Scan | "));
    assert!(print(Format::Vertical, &batch).contains("plan │ Limit\n     │   Scan\nn    │ 7\n"));
}

#[test]
fn long_texts_are_cut_where_asked() {
    let batch = answer(vec![("t", Arc::new(StringArray::from(vec!["0123456789"; 2])))]);
    let options = PrintOptions { format: Format::Table, column_width_max: Some(5), color: false };
    let text = print_with(options, &batch.schema(), std::slice::from_ref(&batch));
    assert!(text.contains("│ 0123… │"), "{text}");
}

#[test]
fn stored_text_cannot_move_the_cursor() {
    let batch = answer(vec![("t", Arc::new(StringArray::from(vec!["\x1b[2Jgone"])))]);
    for format in [Format::Table, Format::Markdown, Format::Vertical] {
        assert!(!print(format, &batch).contains('\x1b'), "{format:?}");
    }
}

#[test]
fn null_is_dim_where_there_is_colour() {
    let batch = answer(vec![("id", Arc::new(Int64Array::from(vec![None, Some(12345)])))]);
    let options = PrintOptions { format: Format::Table, column_width_max: None, color: true };
    let text = print_with(options, &batch.schema(), std::slice::from_ref(&batch));
    assert!(text.contains("│  \x1b[2mNULL\x1b[0m │\n│ 12345 │"), "{text}");
}

#[test]
fn names_that_occur_twice_are_numbered_in_json() {
    let column = |n| Arc::new(Int64Array::from(vec![n])) as ArrayRef;
    let fields = ["id", "id", "id_2"].map(|name| Field::new(name, DataType::Int64, true));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), vec![column(1), column(2), column(3)]);
    check(Format::Jsonl, &batch.unwrap(), "{\"id\":1,\"id_2\":2,\"id_2_2\":3}\n");
}

#[test]
fn an_endless_table_is_printed_block_by_block() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let options = PrintOptions { format: Format::Table, column_width_max: None, color: false };
    let mut printer = printer(&schema, options).unwrap();
    let rows = |numbers: std::ops::Range<i64>| {
        RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from_iter_values(numbers))]).unwrap()
    };
    let mut out = Vec::new();
    printer.batch(&rows(0..999), &mut out).unwrap();
    assert!(out.is_empty(), "the first block decides the widths");
    printer.batch(&rows(999..1500), &mut out).unwrap();
    let first = String::from_utf8(std::mem::take(&mut out)).unwrap();
    assert!(first.starts_with("┌─────┐\n│   n │\n") && first.ends_with("│ 999 │\n"));
    printer.finish(&mut out).unwrap();
    let second = String::from_utf8(out).unwrap();
    assert!(second.starts_with("├──────┤\n│ 1000 │\n"), "{second}");
    assert!(second.ends_with("│ 1499 │\n└──────┘\n"));
}

#[test]
fn integer_vectors_are_shortened_without_rounding() {
    let lists = ListArray::from_iter_primitive::<Float32Type, _, _>(vec![Some(vec![Some(1_234_567.0); 7])]);
    let batch = answer(vec![("v", Arc::new(lists))]);
    assert!(print(Format::Table, &batch).contains("[1.23e6, 1.23e6, 1.23e6, … 7]"));
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(123_456_789); 7])]);
    let batch = answer(vec![("v", Arc::new(lists))]);
    assert!(print(Format::Table, &batch).contains("[123456789, 123456789, 123456789, … 7]"));
}
