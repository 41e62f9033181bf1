//! Questions about one vector.

use super::*;
use crate::matrix::pair_distances;
use crate::metric::Metric;
use crate::testing::Random;
use crate::vectors::ElementType;

#[test]
fn norm_is_the_distance_from_the_origin() {
    let mut random = Random::new(1);
    for element in [ElementType::F32, ElementType::F16, ElementType::I8, ElementType::U8] {
        for dim in [1, 15, 16, 17, 384] {
            let vector = random.vectors(element, dim);
            let mut distance = [f64::NAN];
            let origin = vec![0.0; dim];
            let origin = Vectors::F32(&origin);
            assert_eq!(pair_distances(Metric::L2, dim, vector.vectors(), origin, &mut distance), Ok(()));
            assert_eq!(norm(vector.vectors()).to_bits(), distance[0].to_bits(), "{element:?} d={dim}");
        }
    }
    assert_eq!(norm(Vectors::F32(&[3.0, 4.0])), 5.0);
    assert_eq!(norm(Vectors::Bits(&[0b1111, 0])), 2.0);
    assert_eq!(norm(Vectors::F32(&[])), 0.0);
}

#[test]
fn normalized_vectors_have_length_one_and_zero_stays_zero() {
    let mut random = Random::new(2);
    for dim in [1, 3, 384] {
        let vector: Vec<f32> = (0..dim).map(|_| random.float() * 1e30).collect();
        let length = norm(Vectors::F32(&normalize_f32(&vector)));
        assert!((length - 1.0).abs() < 1e-6, "d={dim}: {length}");
        let half: Vec<f16> = (0..dim).map(|_| f16::from_f32(random.float() * 1e4)).collect();
        let length = norm(Vectors::F16(&normalize_f16(&half)));
        assert!((length - 1.0).abs() < 1e-3, "d={dim}: {length}");
    }
    assert_eq!(normalize_f32(&[3.0, -4.0]), [0.6, -0.8]);
    assert_eq!(normalize_f32(&[0.0, 0.0]), [0.0, 0.0]);
    assert_eq!(normalize_f16(&[f16::ZERO]), [f16::ZERO]);
    // The square of this length is no f32, and the elements are subnormal.
    assert_eq!(normalize_f32(&[1e-45, 0.0]), [1.0, 0.0]);
}

#[test]
fn the_first_element_is_the_most_significant_bit() {
    let check = |vector: Vectors<'_>, expected: &[u8]| assert_eq!(binary_quantize(vector), expected, "{vector:?}");
    check(Vectors::F32(&[1.0, -1.0, 0.0, -0.0, f32::NAN, 1e-45, f32::INFINITY, 2.0]), &[0b1000_0111]);
    check(Vectors::F32(&[1.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0]), &[0b1010_0000, 0b1000_0000]);
    check(Vectors::F16(&[f16::ONE, f16::NEG_ONE, f16::ONE]), &[0b1010_0000]);
    check(Vectors::I8(&[-128, 127, 0, 1]), &[0b0101_0000]);
    check(Vectors::U8(&[0, 255, 0, 1]), &[0b0101_0000]);
    check(Vectors::Bits(&[7, 9]), &[7, 9]);
}

#[test]
fn the_first_value_that_is_not_finite_is_found_wherever_it_is() {
    for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for count in [1, 2, 255, 256, 257, 1000] {
            let mut floats = vec![f32::MAX; count];
            assert_eq!(first_non_finite(Vectors::F32(&floats)), None);
            for at in [count - 1, count / 2, 0] {
                floats[at] = value;
                assert_eq!(first_non_finite(Vectors::F32(&floats)), Some(at), "{value} of {count}");
                let halves: Vec<f16> =
                    floats.iter().map(|v| f16::from_f32(if *v == f32::MAX { 1.0 } else { *v })).collect();
                assert_eq!(first_non_finite(Vectors::F16(&halves)), Some(at), "{value} of {count}");
            }
        }
    }
    assert_eq!(first_non_finite(Vectors::F16(&[f16::MAX, f16::MIN, f16::ZERO])), None);
    assert_eq!(first_non_finite(Vectors::U8(&[255])), None);
    assert_eq!(first_non_finite(Vectors::F32(&[])), None);
}
