//! Values of Arrow arrays as JSON text. Whole numbers and decimals keep every digit.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, StructArray};
use arrow_schema::DataType;

/// JSON text of values, one after the other.
#[derive(Debug, Default)]
pub(super) struct JsonText {
    text: String,
    /// Whether every number was one that JSON has.
    is_finite: bool,
}

/// Whether values of this type have a JSON form that says the same. Dates, bytes and maps have none.
pub(crate) fn has_json_form(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => has_json_form(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| has_json_form(field.data_type())),
        DataType::Dictionary(_, values) => has_json_form(values),
        DataType::Null | DataType::Boolean => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_numeric(),
    }
}

impl JsonText {
    /// The value of a row; the second is whether all of its numbers are finite. Numbers that are not become
    /// null.
    ///
    /// # Errors
    /// What the value is, where it has no JSON form.
    pub(super) fn of(array: &dyn Array, row: usize) -> Result<(String, bool), String> {
        let mut json = Self { text: String::new(), is_finite: true };
        json.value(array, row)?;
        Ok((json.text, json.is_finite))
    }

    fn value(&mut self, array: &dyn Array, row: usize) -> Result<(), String> {
        if array.is_null(row) {
            self.text.push_str("null");
            return Ok(());
        }
        match array.data_type() {
            DataType::Null => self.text.push_str("null"),
            DataType::Boolean => self.display(array.as_boolean().value(row)),
            DataType::Int8 => self.whole::<Int8Type>(array, row),
            DataType::Int16 => self.whole::<Int16Type>(array, row),
            DataType::Int32 => self.whole::<Int32Type>(array, row),
            DataType::Int64 => self.whole::<Int64Type>(array, row),
            DataType::UInt8 => self.whole::<UInt8Type>(array, row),
            DataType::UInt16 => self.whole::<UInt16Type>(array, row),
            DataType::UInt32 => self.whole::<UInt32Type>(array, row),
            DataType::UInt64 => self.whole::<UInt64Type>(array, row),
            DataType::Float16 => {
                self.float(array.as_primitive::<Float16Type>().value(row).to_f64())
            }
            DataType::Float32 => self.float(array.as_primitive::<Float32Type>().value(row).into()),
            DataType::Float64 => self.float(array.as_primitive::<Float64Type>().value(row)),
            DataType::Decimal32(..) => {
                self.display(array.as_primitive::<Decimal32Type>().value_as_string(row));
            }
            DataType::Decimal64(..) => {
                self.display(array.as_primitive::<Decimal64Type>().value_as_string(row));
            }
            DataType::Decimal128(..) => {
                self.display(array.as_primitive::<Decimal128Type>().value_as_string(row));
            }
            DataType::Decimal256(..) => {
                self.display(array.as_primitive::<Decimal256Type>().value_as_string(row));
            }
            DataType::Utf8 => self.string(array.as_string::<i32>().value(row)),
            DataType::LargeUtf8 => self.string(array.as_string::<i64>().value(row)),
            DataType::Utf8View => self.string(array.as_string_view().value(row)),
            DataType::Binary => return self.bytes(array.as_binary::<i32>().value(row)),
            DataType::LargeBinary => return self.bytes(array.as_binary::<i64>().value(row)),
            DataType::BinaryView => return self.bytes(array.as_binary_view().value(row)),
            DataType::Struct(_) => return self.table(array.as_struct(), row),
            DataType::List(_) => return self.list(array.as_list::<i32>().value(row).as_ref()),
            DataType::LargeList(_) => return self.list(array.as_list::<i64>().value(row).as_ref()),
            DataType::ListView(_) => {
                return self.list(array.as_list_view::<i32>().value(row).as_ref());
            }
            DataType::LargeListView(_) => {
                return self.list(array.as_list_view::<i64>().value(row).as_ref());
            }
            DataType::FixedSizeList(..) => {
                return self.list(array.as_fixed_size_list().value(row).as_ref());
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                return match index(dictionary.keys(), row) {
                    Some(index) => self.value(dictionary.values().as_ref(), index),
                    None => Err("holds a dictionary whose keys are damaged".into()),
                };
            }
            other => return Err(format!("holds values of the type {other}, which are not read")),
        }
        Ok(())
    }

    fn display(&mut self, value: impl std::fmt::Display) {
        use std::fmt::Write as _;
        // Writing to a string does not fail.
        let _ = write!(self.text, "{value}");
    }

    fn whole<T: ArrowPrimitiveType<Native: std::fmt::Display>>(
        &mut self,
        array: &dyn Array,
        row: usize,
    ) {
        self.display(array.as_primitive::<T>().value(row));
    }

    fn float(&mut self, value: f64) {
        self.is_finite &= value.is_finite();
        self.text.push_str(&serde_json::Value::from(value).to_string());
    }

    fn string(&mut self, text: &str) {
        self.text.push_str(&serde_json::Value::from(text).to_string());
    }

    /// Some writers do not mark their text as text.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.string(text);
                Ok(())
            }
            Err(_) => Err("holds bytes that are not UTF-8 text".into()),
        }
    }

    fn list(&mut self, items: &dyn Array) -> Result<(), String> {
        self.text.push('[');
        for index in 0..items.len() {
            if index > 0 {
                self.text.push(',');
            }
            self.value(items, index)?;
        }
        self.text.push(']');
        Ok(())
    }

    fn table(&mut self, table: &StructArray, row: usize) -> Result<(), String> {
        self.text.push('{');
        for (index, (field, values)) in table.fields().iter().zip(table.columns()).enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            self.string(field.name());
            self.text.push(':');
            self.value(values.as_ref(), row)?;
        }
        self.text.push('}');
        Ok(())
    }
}

/// The key of a dictionary at this row.
fn index(keys: &dyn Array, row: usize) -> Option<usize> {
    fn at<T: ArrowPrimitiveType<Native: TryInto<usize>>>(
        keys: &dyn Array,
        row: usize,
    ) -> Option<usize> {
        keys.as_primitive::<T>().value(row).try_into().ok()
    }
    match keys.data_type() {
        DataType::Int8 => at::<Int8Type>(keys, row),
        DataType::Int16 => at::<Int16Type>(keys, row),
        DataType::Int32 => at::<Int32Type>(keys, row),
        DataType::Int64 => at::<Int64Type>(keys, row),
        DataType::UInt8 => at::<UInt8Type>(keys, row),
        DataType::UInt16 => at::<UInt16Type>(keys, row),
        DataType::UInt32 => at::<UInt32Type>(keys, row),
        DataType::UInt64 => at::<UInt64Type>(keys, row),
        _ => None,
    }
}
